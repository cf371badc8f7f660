"""Read run folders for a report: what an agent learned, how it scored, how it learned and what it cost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unroll.agents import AGENTS
from unroll.agents.common.checkpoint import checkpoints
from unroll.agents.common.logs import ANEW, read_metrics
from unroll.agents.common.run_folder import LOCK, is_locked
from unroll.agents.evaluation.scoring import all_results, highest
from unroll.comparison.variants import varied_fields
from unroll.errors import ComparisonError, one_line

log = logging.getLogger(__name__)
MEMORY = "perf/peak_memory_mb"
SCORE = "eval/return_mean"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. ``experiment`` and ``backbone`` are the names under which it is compared."""

    folder: Path
    experiment: str
    backbone: str
    seed: int
    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, float]]

    @property
    def result(self) -> dict[str, Any]:
        """The evaluation's result at the highest target return, which is the run's headline."""
        return highest(self.evaluation)

    def score(self, kind: str) -> float:
        """Return the last checkpoint's ``normalized_score`` or ``return_mean``."""
        return float(self.result[kind])

    def curve(self, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and the values of a metric. A step that was logged twice has its last value.

        Scores are those of the last evaluation that the run had: what another one gave is not the same curve.
        """
        lines = self.metrics[self._anew :] if tag.startswith(("eval/", "eval_targets/")) else self.metrics
        points = {line["step"]: line[tag] for line in lines if tag in line}
        return np.array(list(points)), np.array(list(points.values()))

    @cached_property
    def _anew(self) -> int:
        """The line from which on scores are those of the last evaluation of which any was logged."""
        last = max(self._scored, default=0)
        return max((i for i, line in enumerate(self.metrics) if ANEW in line and i < last), default=0)

    @property
    def _scored(self) -> list[int]:
        """The lines that have a score."""
        return [i for i, line in enumerate(self.metrics) if SCORE in line]

    def cost(self, tag: str) -> float | None:
        """Return the median of what the run logged; of memory the most that any of its processes had. None: nothing."""
        values = [line[tag] for line in self.metrics if tag in line]
        if not values:
            return None
        return max(values) if tag == MEMORY else float(np.median(values))

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two runs of a report have in common."""
        return self.experiment, self.backbone, self.seed

    @property
    def episodes_used(self) -> int:
        """The number of episodes that were played to evaluate: the last time as often as its file says.

        While it learned the run played as its log says: unroll evaluate may have replaced the file since. Logs of
        before do not say it, and the config does, as it is now.
        """
        played = len(all_results(self.evaluation)) * self.evaluation["episodes"]
        counts = {line["step"]: self._episodes_in(line) for line in self.metrics if SCORE in line}
        # The last logged one is that of the file, but where a finished run was scored anew, which is not logged.
        again = any(ANEW in line for line in self.metrics[max(self._scored, default=0) :])
        return int(played + sum(list(counts.values())[: None if again else -1]))

    def _episodes_in(self, line: dict[str, float]) -> float:
        return line.get("perf/evaluation_episodes", _results_in(line) * self.config["evaluation"]["episodes"])


def _results_in(line: dict[str, float]) -> int:
    """Count the results of an evaluation, by what was logged of it: one for each target, and one without memory."""
    targets = sum(name.startswith("eval_targets/return_mean_at_") for name in line)
    return max(1, targets) + ("eval/return_mean_without_memory" in line)


def read_run(folder: Path, experiment: str | None = None) -> Run:
    """Read the finished run in a folder.

    ``experiment`` is the name of its experiment. By default that is the name in its config, or else the name of what it
    learned from.

    Raises:
        ComparisonError: a file is missing or damaged.
    """
    config = _read(folder / "config.yaml", yaml.safe_load)
    evaluation = _read(folder / "evaluation.json", json.loads)
    try:
        steps = config["steps"]
        backbone = config["backbone"]["name"]
        seed = int(config["seed"])
        source = config[AGENTS[config["agent"]].source]
        _check_results(evaluation)
        # The report computes with these two, so they must be numbers.
        int(steps)
        float(evaluation["step_latency_us"])
    except KeyError as error:
        raise _not_finished(folder, f"no {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise _not_finished(folder, str(error)) from None

    return Run(
        folder,
        experiment or config.get("experiment") or evaluation.get("dataset") or _joined(source, lambda path: path.stem),
        _label(folder, backbone.rpartition(":")[2]),
        seed,
        config,
        evaluation,
        read_metrics(folder),
    )


def why_unfinished(folder: Path, agent: str, steps: int, evaluation: dict[str, Any]) -> str | None:
    """Say why an evaluation is not that of the end of a run of so many steps; None if it is.

    A run can be evaluated when it was stopped, and it can go on after it was evaluated.
    """
    unit = AGENTS[agent].unit
    scored = evaluation.get(f"{unit}s")
    if not isinstance(scored, int):
        return None
    kept = checkpoints(folder)
    last = int(kept[-1].name.removeprefix("step_")) if kept else scored
    where = shlex.quote(str(folder))
    if last < steps and is_locked(folder):
        return f"is being trained; its last checkpoint is of {unit} {last:,} of {steps:,}"
    if last < steps:
        return (
            f"stopped at {unit} {last:,} of {steps:,}; unroll train --resume true --run_dir {where} goes on, and with "
            f"--steps {last} it is finished there"
        )
    if scored != last:
        return f"evaluation.json scores {unit} {scored:,}, its last is {last:,}; unroll evaluate {where} scores that"
    return None


def _joined(source: str | list[str], name: Callable[[Path], str]) -> str:
    """Name what a run learned from by a name for each dataset, or for its environment."""
    sources = [source] if isinstance(source, str) else source
    return "+".join(name(Path(one.rpartition(":")[2])) for one in sources)


def _told_apart(runs: list[Run]) -> list[Run]:
    """Name an experiment by the folders of its files too, where two files of one name would make two runs the same."""
    count = Counter(run.key for run in runs)
    doubtful = {experiment for (experiment, _, _), n in count.items() if n > 1}
    named = []
    for run in runs:
        if run.experiment in doubtful and not run.config.get("experiment"):
            source = run.config[AGENTS[run.config["agent"]].source]
            full = _joined(source, lambda path: f"{path.parent.name}-{path.stem}".strip("-"))
            run = dataclasses.replace(run, experiment=full)
        named.append(run)
    return named


def _label(folder: Path, backbone: str) -> str:
    """Return the name of a run's row: the backbone, or what a comparison with options or varied fields named it."""
    row = folder.absolute().parent.name
    return row if row.startswith(f"{backbone}-") and varied_fields(row) else backbone


def _check_results(evaluation: dict[str, Any]) -> None:
    """Raise ValueError unless every result has a finite mean return and as many returns as there were episodes."""
    for result in evaluation["results"]:
        played = len(result["returns"])
        if not np.isfinite(result["return_mean"]) or played != evaluation["episodes"]:
            raise ValueError(f"return_mean {result['return_mean']} of {played} episodes")


def _not_finished(folder: Path, why: str) -> ComparisonError:
    return ComparisonError(f"{folder}: not a finished run of unroll train: {why} in its config or evaluation")


def find_runs(folders: Iterable[Path], left_out: dict[str, str] | None = None) -> list[Run]:
    """Read all finished runs in and below the folders. Of others a line is logged.

    Args:
        left_out: gets these lines, by folder.

    Raises:
        ComparisonError: a folder holds none, or two runs have the same experiment, backbone and seed.
    """
    finished: list[Run] = []
    left_out = {} if left_out is None else left_out  # a grid may still be running
    read: set[Path] = set()
    for top in folders:
        found = _run_folders(top)
        if not found:
            raise ComparisonError(f"{top}: no finished run in it, which would be a folder with an evaluation.json")
        for folder in found:
            if folder.resolve() in read:  # one of the folders may be within another
                continue
            read.add(folder.resolve())
            # A run is finished once it has been evaluated.
            if not (folder / "evaluation.json").exists():
                left_out[str(folder)] = _why_unscored(folder)
                continue
            run = read_run(folder)
            unfinished = why_unfinished(folder, run.config["agent"], int(run.config["steps"]), run.evaluation)
            if unfinished is not None:
                left_out[str(folder)] = unfinished
                continue
            finished.append(run)
    lines = [f"{folder}: {why}" for folder, why in left_out.items()]
    if not finished and lines:
        raise ComparisonError(lines[0])
    for line in lines:
        log.warning("left out: %s", line)
    runs: dict[tuple[str, str, int], Run] = {}
    for run in _told_apart(finished):
        other = runs.setdefault(run.key, run)
        if other is not run:
            raise ComparisonError(
                f"{other.folder} and {run.folder} are both {run.backbone}, seed {run.seed}, of {run.experiment}; leave "
                "one out, or train one with another --experiment"
            )
    return list(runs.values())


def _run_folders(top: Path) -> list[Path]:
    """The folders of runs in and below a folder: finished, unfinished, and of a run that failed before it began."""
    found: list[Path] = []
    for where, below, files in sorted(os.walk(top)):
        folder = Path(where)
        begun = "config.yaml" in files and not set(found) & set(folder.parents) and _is_of_a_run(folder / "config.yaml")
        if begun or "evaluation.json" in files or (files == [LOCK] and not below):
            found.append(folder)
    return found


def _is_of_a_run(config: Path) -> bool:
    """Whether a config is that of a run: trackers and others write files of that name too."""
    try:
        return {"agent", "backbone", "seed"} <= _read(config, yaml.safe_load).keys()
    except ComparisonError:
        return True  # a damaged one is told of


def _why_unscored(folder: Path) -> str:
    """Say why the run in a folder has no evaluation."""
    if is_locked(folder):
        return "is being trained"
    if not (folder / "config.yaml").is_file():
        return "is empty: its run failed before it began"
    with contextlib.suppress(ComparisonError):
        evaluation = _read(folder / "config.yaml", yaml.safe_load).get("evaluation")
        if isinstance(evaluation, dict) and evaluation.get("episodes") == 0:
            return (
                f"was trained with evaluation.episodes 0 and has no score; unroll evaluate {shlex.quote(str(folder))} "
                "--episodes 20 gives it one"
            )
    return "has no evaluation.json: it was stopped, or has failed"


def _read(path: Path, parse: Any) -> Any:
    """Parse a file that holds a mapping.

    Raises:
        ComparisonError: it is missing or damaged.
    """
    try:
        content = parse(path.read_text())
    except FileNotFoundError:
        raise ComparisonError(f"{path}: missing") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ComparisonError(f"{path}: damaged: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ComparisonError(f"{path}: damaged: not a mapping")
    return content
