"""A run that comes or goes is what it says: its config is read strictly, its checkpoint against its manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from unroll.agents.common.checkpoint import STATE, latest_checkpoint, read_checkpoint
from unroll.agents.common.logs import read_metrics
from unroll.agents.evaluation.scoring import headline, score_table
from unroll.comparison.runs import read_run
from unroll.configs import Config, plain_config, read_config, save_config
from unroll.configs.loading import flat
from unroll.errors import CheckpointError, ShareError
from unroll.hub.files import limit

OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
AGENTS = {"decision": "DecisionAgent", "ppo": "RecurrentPPO"}


@dataclasses.dataclass(frozen=True)
class Shared:
    """A verified run: its config, the state of its one checkpoint, and its evaluation and last metrics, if any."""

    folder: Path
    config: Config
    state: dict[str, Any]
    evaluation: dict[str, Any] | None
    metrics: dict[str, float]

    @property
    def files(self) -> dict[str, int]:
        """Names and bytes of all that travels."""
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


def verify(folder: Path, source: str) -> Shared:
    """The run in ``folder``, which is called ``source`` in errors. Nothing that it names is imported or opened. Its
    config is written anew from what was understood of it, so that it holds no more.

    Raises:
        ShareError: a file is missing, damaged, too large or not what its name says.
        SystemExit: the same of its config, after the line that says why.
    """
    try:
        return _verify(folder, source)
    except RecursionError:
        raise ShareError(f"{source}: not a run: nested too deeply") from None
    except (CheckpointError, UnicodeDecodeError) as error:
        raise ShareError(str(error).replace(str(folder), source)) from None


def _verify(folder: Path, source: str) -> Shared:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in names:
        most, size = limit(name), (folder / name).stat().st_size
        if most is None or size > most:
            raise ShareError(f"{source}/{name}: {size:,} bytes, where {most or 0:,} are the most")
    config = read_foreign(folder / "config.yaml", f"{source}/config.yaml")
    save_config(config, folder / "config.yaml")
    checkpoint = latest_checkpoint(folder)
    _, state = read_checkpoint(checkpoint)
    if state.get("agent") != AGENTS[config.agent]:
        raise ShareError(f"{source}: its config is of agent {config.agent}, its checkpoint of {state.get('agent')!r}")
    step = state.get("num_timesteps")
    if not isinstance(step, int) or checkpoint.name != f"step_{step:08d}":
        raise ShareError(f"{checkpoint}: holds step {step!r}")
    if isinstance(state.get("config"), dict) and config.agent == "ppo":
        understand(state["config"], f"{checkpoint}/{STATE}".replace(str(folder), source))
    gif = folder / "evaluation.gif"
    if gif.exists() and gif.read_bytes()[:4] != b"GIF8":
        raise ShareError(f"{gif}: not a GIF")
    evaluation = read_evaluation(folder, state) if (folder / "evaluation.json").exists() else None
    return Shared(folder, config, state, evaluation, last_metrics(folder))


def read_foreign(path: Path, source: str) -> Config:
    """The config in a file of somebody else's, checked as ``load_config`` does, and opening no other file."""
    try:
        text = path.read_text()
        refuse_bombs(text)
        fields = yaml.safe_load(text)
    except FileNotFoundError:
        raise ShareError(f"{source}: missing; this is not the folder of a run") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ShareError(f"{source}: damaged: {' '.join(str(error).split())}") from None
    return dataclasses.replace(understand(fields, source), track="none")  # whoever has it decides anew


def refuse_bombs(text: str) -> None:
    """A short YAML file can be endless, by aliases, or keep its parser for minutes, by nesting. Raise ValueError."""
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if isinstance(token, yaml.AliasToken) or depth > 20:
            raise ValueError("an alias, or more than 20 levels, which no config of a run has")


def understand(fields: Any, source: str) -> Config:
    """The config of these fields. A path in the place of a mapping, which the parser would open, is an error, and so is
    a field that no run saves."""
    try:
        groups = [fields, fields["backbone"], fields["backbone"]["options"], fields["evaluation"]]
    except (KeyError, TypeError):
        groups = [None]
    if not all(isinstance(group, dict) and all(isinstance(key, str) for key in group) for group in groups):
        raise ShareError(f"{source}: not the config of a run")
    config = read_config(fields, source)
    known = flat(plain_config(config))
    if strange := [key for key, value in flat(fields).items() if key not in known or known[key] != value]:
        raise ShareError(f"{source}: {strange[0]} is not in the config of a run")
    return config


def read_evaluation(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of the checkpoint with this state, with all that a table of scores needs."""
    path, evaluation = folder / "evaluation.json", read_run(folder).evaluation
    try:
        headline(evaluation), score_table(evaluation)
        of = evaluation["updates" if evaluation["agent"] == "DecisionAgent" else "steps"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ShareError(f"{path}: not an evaluation of evaluate.py ({type(error).__name__}: {error})") from None
    if of != state["num_timesteps"]:
        told = f"scores step {of}, the checkpoint is of step {state['num_timesteps']}"
        raise ShareError(f"{path}: {told}; python evaluate.py scores that")
    return evaluation


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of every metric."""
    last: dict[str, float] = {}
    for line in read_metrics(folder):
        if not all(isinstance(value, int | float) for value in line.values()):
            raise ShareError(f"{folder}/metrics.jsonl: not numbers: {json.dumps(line)[:80]}")
        last |= line
    return last
