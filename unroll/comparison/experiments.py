"""An experiment: what several backbones learned in the same way, one run for each backbone and seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from unroll.agents import AGENTS
from unroll.comparison.runs import Run
from unroll.errors import ComparisonError

NOT_COMPARED = ("seed", "experiment", "device", "threads", "keep", "log_every", "checkpoint_every")
TAGS = {"normalized_score": "eval/normalized_score", "return_mean": "eval/return_mean"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """``runs[backbone]`` are its finished runs, in the order of their seeds."""

    name: str
    runs: dict[str, list[Run]]

    @cached_property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    @cached_property
    def kind(self) -> str:
        """What is compared: the normalised score where every run has one, else the return."""
        scored = all(run.result["normalized_score"] is not None for run in self.all_runs)
        return "normalized_score" if scored else "return_mean"

    @property
    def words(self) -> str:
        return {"normalized_score": "normalised score", "return_mean": "return"}[self.kind]

    @property
    def tag(self) -> str:
        return TAGS[self.kind]

    @property
    def first(self) -> Run:
        return self.all_runs[0]

    @property
    def unit(self) -> str:
        return AGENTS[self.first.config["agent"]].long_unit

    def scores(self, backbone: str) -> np.ndarray:
        """Of each seed [seeds]: the last checkpoint's."""
        return np.array([run.score(self.kind) for run in self.runs[backbone]])

    def shared_scores(self, backbone: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the seeds that both have."""
        own, other = ({run.seed: run.score(self.kind) for run in self.runs[b]} for b in (backbone, reference))
        seeds = [seed for seed in own if seed in other]
        return np.array([own[seed] for seed in seeds]), np.array([other[seed] for seed in seeds])

    @property
    def fewest_seeds(self) -> int:
        return min(map(len, self.runs.values()))

    def curves(self, backbone: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [N] and values [seeds, N] of a metric, at the steps of the shortest run of the backbone; values between
        the points of the others are interpolated."""
        found = [curve for run in self.runs[backbone] if len((curve := run.curve(tag))[0])]
        if len(found) < len(self.runs[backbone]):
            return np.empty(0), np.empty((0, 0))
        grid = min((steps for steps, _ in found), key=lambda steps: (len(steps), steps[-1]))
        return grid, np.array([np.interp(grid, steps, values) for steps, values in found])

    @cached_property
    def curve_tag(self) -> str | None:
        """The metric of the learning curves: evaluations while learning, else the returns of PPO's own episodes."""
        for tag in (self.tag, "rollout/ep_rew_mean"):
            if all(len(run.curve(tag)[0]) > 1 for run in self.all_runs):
                return tag
        return None

    def median(self, backbone: str, tag: str) -> float | None:
        """The median over seeds of each run's median."""
        values = [value for run in self.runs[backbone] if (value := run.median(tag)) is not None]
        return float(np.median(values)) if values else None

    def latency(self, backbone: str) -> float:
        """Microseconds for a step of one environment, the median over seeds."""
        return float(np.median([run.evaluation["step_latency_us"] for run in self.runs[backbone]]))

    def calibration(self, backbone: str) -> list[tuple[float, list[float]]]:
        """(the return asked for, the mean return of each seed), for agents that can be asked."""
        targets = [result["target_return"] for result in self.first.evaluation["results"]]
        if None in targets:
            return []
        found = [
            {r["target_return"]: r["return_mean"] for r in run.evaluation["results"]} for run in self.runs[backbone]
        ]
        return [(target, [one[target] for one in found]) for target in targets if all(target in one for one in found)]

    @property
    def steps(self) -> str:
        """How long the runs were, in words."""
        most = {name: max(run.config["steps"] for run in runs) for name, runs in self.runs.items()}
        if len(set(most.values())) == 1:
            return f"{next(iter(most.values())):,} {self.unit}"
        return f"{self.unit}: {', '.join(f'{name} {steps:,}' for name, steps in most.items())}"

    def differences(self) -> list[str]:
        """In what the runs differ beside backbone and seed: what makes a comparison unfair."""
        lines = []
        for name, values in (
            ("config", [_plain(run.config) for run in self.all_runs]),
            ("evaluation", [_played(run.evaluation) for run in self.all_runs]),
        ):
            for key in values[0]:
                seen = sorted({json.dumps(value.get(key)) for value in values})
                if len(seen) > 1:
                    shown = ", ".join(one if len(one) < 40 else f"{one[:36]} …" for one in seen)
                    lines.append(f"{name}: {key} is {shown}")
        return lines


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What all runs of an experiment should have alike; the sizes of the backbones are shown in the report's table."""
    flat = {key: value for key, value in config.items() if key not in (*NOT_COMPARED, "backbone", "evaluation")}
    return flat | {"backbone.n_layers": config["backbone"]["n_layers"]}


def _played(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "env": evaluation["env"],
        "seeds": evaluation.get("seeds"),
        "memory": evaluation.get("memory"),
        "max_steps": evaluation.get("max_steps"),  # where an episode was cut
        "target_return": [result["target_return"] for result in evaluation["results"]],
        "mujoco": evaluation.get("versions", {}).get("mujoco"),
        "torch": evaluation.get("versions", {}).get("torch"),
    }


def group(runs: Iterable[Run], order: list[str] | None = None) -> list[Experiment]:
    """The experiments of the runs, by name; backbones in ``order``, else in that of ``runs``.

    Raises:
        ComparisonError: there is no run.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        found.setdefault(run.experiment, {}).setdefault(run.backbone, []).append(run)
    if not found:
        raise ComparisonError("no run has finished: nothing can be compared")
    if order:
        found = {name: {b: by[b] for b in [*order, *by] if b in by} for name, by in found.items()}
    return [Experiment(name, by) for name, by in found.items()]
