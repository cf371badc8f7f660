"""Check that a run that comes or goes is what it says: its config strictly, its checkpoint against its manifest."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import yaml

from unroll.agents import AGENTS, schemas
from unroll.agents.algorithm import Algorithm
from unroll.agents.common.checkpoint import STATE, latest_checkpoint, read_checkpoint
from unroll.agents.common.logs import read_metrics
from unroll.agents.evaluation.scoring import all_results, headline, score_table
from unroll.comparison.runs import read_run
from unroll.configs import RunConfig, flat, plain_config, read_config, save_config
from unroll.configs.strict_yaml import read_mapping
from unroll.errors import ShareError, UserError, one_line
from unroll.hub.files import limit


@dataclasses.dataclass(frozen=True)
class Shared:
    """A verified run: its config, the state of its one checkpoint, and its evaluation and last metrics, if any."""

    folder: Path
    config: RunConfig
    state: dict[str, Any]
    evaluation: dict[str, Any] | None
    metrics: dict[str, float]

    @property
    def algorithm(self) -> Algorithm:
        return AGENTS[self.config.agent]

    @property
    def files(self) -> dict[str, int]:
        """The names and bytes of all files that travel."""
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


def verify(folder: Path, source: str) -> Shared:
    """Verify the run in ``folder``, which is called ``source`` in errors.

    Nothing that it names is imported or opened. Its config is written anew from what was understood of it, so that
    nothing else is left in it.

    Raises:
        ShareError: a file is missing, damaged, too large or not what its name says.
        SystemExit: the config is not one, after the line that says why.
    """
    try:
        return _verify(folder, source)
    except RecursionError:
        raise ShareError(f"{source}: not a run: nested too deeply") from None
    except (UserError, UnicodeDecodeError) as error:
        raise ShareError(str(error).replace(str(folder), source)) from None


def _verify(folder: Path, source: str) -> Shared:
    # Every file has a name that a run's files have, and a size that they can have.
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        most = limit(name)
        size = path.stat().st_size
        if most is None or size > most:
            raise ShareError(f"{source}/{name}: {size:,} bytes, where {most or 0:,} are the most")

    # The config is understood in every field.
    config = read_foreign(folder / "config.yaml", f"{source}/config.yaml")
    save_config(config, folder / "config.yaml")
    algorithm = AGENTS[config.agent]

    # The checkpoint is whole, of the agent of the config, and of the step of its name.
    checkpoint = latest_checkpoint(folder)
    _, state = read_checkpoint(checkpoint)
    if state.get("agent") != algorithm.agent:
        raise ShareError(f"{source}: its config is of agent {config.agent}, its checkpoint of {state.get('agent')!r}")
    step = state.get("num_timesteps")
    if not isinstance(step, int) or checkpoint.name != f"step_{step:08d}":
        raise ShareError(f"{checkpoint}: holds step {step!r}")
    inner = algorithm.run_config(state)
    if inner is not None:
        understand(inner, f"{checkpoint}/{STATE}".replace(str(folder), source))

    # The evaluation is that of the checkpoint, and a picture is a picture.
    gif = folder / "evaluation.gif"
    if gif.exists() and gif.read_bytes()[:4] != b"GIF8":
        raise ShareError(f"{gif}: not a GIF")
    evaluation = None
    if (folder / "evaluation.json").exists():
        evaluation = read_evaluation(folder, state, algorithm)
    return Shared(folder, config, state, evaluation, last_metrics(folder))


def read_foreign(path: Path, source: str) -> RunConfig:
    """Read the config in somebody else's file as strictly as ``load_config`` does, and open no other file."""
    try:
        fields = read_mapping(path)
    except FileNotFoundError:
        raise ShareError(f"{source}: missing; this is not the folder of a run") from None
    except (OSError, yaml.YAMLError) as error:
        raise ShareError(f"{source}: damaged: {one_line(error)}") from None
    config = understand(fields, source)
    return dataclasses.replace(config, track="none")  # whoever trains it decides anew where metrics go


def understand(fields: Any, source: str) -> RunConfig:
    """Make a config of these fields.

    A path in the place of a mapping is an error, because the parser would open it. So is a field that no run saves.
    """
    try:
        groups = [fields, fields["backbone"], fields["backbone"]["options"], fields["evaluation"]]
    except (KeyError, TypeError):
        groups = [None]
    for group in groups:
        if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
            raise ShareError(f"{source}: not the config of a run")
    config = read_config(fields, schemas(), source)
    known = flat(plain_config(config))
    for key, value in flat(fields).items():
        if key not in known or known[key] != value:
            raise ShareError(f"{source}: {key} is not in the config of a run")
    return config


def read_evaluation(folder: Path, state: dict[str, Any], algorithm: Algorithm) -> dict[str, Any]:
    """Read the evaluation of the checkpoint with this state, and check that a table of scores can be made of it."""
    path = folder / "evaluation.json"
    evaluation = read_run(folder).evaluation
    try:
        headline(evaluation)
        score_table(evaluation)
        step = evaluation[f"{algorithm.unit}s"]
        wrong = wrong_mean(evaluation)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise ShareError(f"{path}: not an evaluation of a run ({type(error).__name__}: {error})") from None
    if step != state["num_timesteps"]:
        told = f"scores step {step}, the checkpoint is of step {state['num_timesteps']}"
        raise ShareError(f"{path}: {told}; unroll evaluate scores that")
    if wrong is not None:
        raise ShareError(f"{path}: {wrong}; unroll evaluate scores it anew")
    return evaluation


def wrong_mean(evaluation: dict[str, Any]) -> str | None:
    """Say which mean return is not that of the episodes; None if there is none."""
    for result in all_results(evaluation):
        returns = result["returns"]
        mean = sum(returns) / len(returns)
        rounding = 1e-9 * max(map(abs, returns))
        if not math.isclose(result["return_mean"], mean, rel_tol=1e-9, abs_tol=rounding):
            return f"says a mean return of {result['return_mean']:g}, its episodes returned {mean:g}"
    return None


def last_metrics(folder: Path) -> dict[str, float]:
    """Return the last value of every metric."""
    last: dict[str, float] = {}
    for line in read_metrics(folder):
        if not all(isinstance(value, int | float) for value in line.values()):
            raise ShareError(f"{folder}/metrics.jsonl: not numbers: {json.dumps(line)[:80]}")
        last |= line
    return last
