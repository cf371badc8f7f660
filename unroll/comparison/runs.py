"""Run folders, read for a report: which agent learned what, how it scored, how it learned and what it cost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unroll.agents import AGENTS
from unroll.agents.common.logs import read_metrics
from unroll.agents.evaluation.scoring import highest
from unroll.errors import ComparisonError


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
        """The evaluation's result at the highest target: the run's headline."""
        return highest(self.evaluation)

    def score(self, kind: str) -> float:
        """The last checkpoint's ``normalized_score`` or ``return_mean``."""
        return float(self.result[kind])

    def curve(self, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric; of a step that was logged twice, the last."""
        points = {line["step"]: line[tag] for line in self.metrics if tag in line}
        return np.array(list(points)), np.array(list(points.values()))

    def median(self, tag: str) -> float | None:
        values = self.curve(tag)[1]
        return float(np.median(values)) if len(values) else None

    def last(self, tag: str) -> float | None:
        values = self.curve(tag)[1]
        return float(values[-1]) if len(values) else None

    @property
    def episodes_used(self) -> int:
        """Episodes that were played to evaluate, while learning and at the end."""
        evaluations = len(self.curve("eval/return_mean")[0])
        targets = len(self.evaluation["results"]) + ("ablation" in self.evaluation)
        return max(1, evaluations) * targets * self.evaluation["episodes"]


def read_run(folder: Path, experiment: str | None = None) -> Run:
    """The finished run in a folder. ``experiment``: its name; None: its config's, else what it learned from.

    Raises:
        ComparisonError: a file is missing or damaged.
    """
    config = _read(folder / "config.yaml", yaml.safe_load)
    evaluation = _read(folder / "evaluation.json", json.loads)
    try:
        steps, backbone, seed = config["steps"], config["backbone"]["name"], int(config["seed"])
        source = config[AGENTS[config["agent"]].source]
        for result in evaluation["results"]:
            if not np.isfinite(result["return_mean"]) or len(result["returns"]) != evaluation["episodes"]:
                raise ValueError(f"return_mean {result['return_mean']} of {len(result['returns'])} episodes")
        int(steps), float(evaluation["step_latency_us"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise ComparisonError(f"{folder}: not a finished run of train.py: {what} in its config or evaluation") from None
    return Run(
        folder,
        experiment or config.get("experiment") or Path(source.rpartition(":")[2]).stem,
        backbone.rpartition(":")[2],
        seed,
        config,
        evaluation,
        read_metrics(folder),
    )


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """All finished runs in and below the folders.

    Raises:
        ComparisonError: there is none, or two of one experiment, backbone and seed.
    """
    runs: dict[tuple[str, str, int], Run] = {}
    for top in folders:
        found = sorted(Path(where) for where, _, files in os.walk(top) if "evaluation.json" in files)
        if not found:
            unscored = _without_evaluation(top)
            if unscored is not None:
                raise ComparisonError(
                    f"{unscored}: was trained with evaluation.episodes 0 and has no score; unroll evaluate {unscored} "
                    "--episodes 20 gives it one"
                )
            raise ComparisonError(f"{top}: no finished run in it, which would be a folder with an evaluation.json")
        for folder in found:
            run = read_run(folder)
            key = (run.experiment, run.backbone, run.seed)
            if key in runs:
                name = f"{run.backbone}, seed {run.seed}, of {run.experiment}"
                raise ComparisonError(f"{runs[key].folder} and {folder} are both {name}; move one away")
            runs[key] = run
    return list(runs.values())


def _without_evaluation(top: Path) -> Path | None:
    """The first run in and below a folder that was trained without evaluations."""
    for where, _, files in sorted(os.walk(top)):
        if "config.yaml" not in files:
            continue
        with contextlib.suppress(ComparisonError):
            evaluation = _read(Path(where, "config.yaml"), yaml.safe_load).get("evaluation")
            if isinstance(evaluation, dict) and evaluation.get("episodes") == 0:
                return Path(where)
    return None


def _read(path: Path, parse: Any) -> Any:
    try:
        content = parse(path.read_text())
    except FileNotFoundError:
        raise ComparisonError(f"{path}: missing") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ComparisonError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ComparisonError(f"{path}: damaged: not a mapping")
    return content
