"""An experiment: what several backbones learned in the same way, with one run for each backbone and seed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from unroll.agents import AGENTS
from unroll.comparison.runs import Run
from unroll.comparison.variants import varied_fields
from unroll.configs.loading import flat
from unroll.errors import ComparisonError

# Fields of a config in which the runs of an experiment may differ.
NOT_COMPARED = ("seed", "experiment", "device", "threads", "keep", "log_every", "checkpoint_every")
# Facts of an evaluation by the fields that set them where their names are others.
SET_BY = {
    "evaluation.targets": "target_return",
    "evaluation.seed": "seeds",
    "evaluation.episodes": "seeds",
    "reset_on_done": "memory",
}
SCHEDULED = ("train/learning_rate", "train/clip_range")  # what may fall over a run
TAGS = {"normalized_score": "eval/normalized_score", "return_mean": "eval/return_mean"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment with its finished runs: ``runs[backbone]`` are in the order of their seeds."""

    name: str
    runs: dict[str, list[Run]]

    @cached_property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    @property
    def first(self) -> Run:
        return self.all_runs[0]

    @cached_property
    def kind(self) -> str:
        """What is compared: ``normalized_score`` where every run has one, else ``return_mean``."""
        for run in self.all_runs:
            if run.result["normalized_score"] is None:
                return "return_mean"
        return "normalized_score"

    @property
    def tag(self) -> str:
        """The metric under which runs log what is compared."""
        return TAGS[self.kind]

    @cached_property
    def curve_tag(self) -> str | None:
        """The metric of the learning curves; None where some run has no curve.

        Evaluations while learning are preferred to the returns of PPO's own episodes.
        """
        for tag in (self.tag, "rollout/ep_rew_mean"):
            if all(len(run.curve(tag)[0]) > 1 for run in self.all_runs):
                return tag
        return None

    @property
    def unit(self) -> str:
        """What a step of these runs is, in the plural."""
        return AGENTS[self.first.config["agent"]].long_unit

    @property
    def steps(self) -> str:
        """How long the runs were, in words."""
        longest = {}
        for name, runs in self.runs.items():
            longest[name] = max(run.config["steps"] for run in runs)
        lengths = set(longest.values())
        if len(lengths) == 1:
            return f"{lengths.pop():,} {self.unit}"
        return f"{self.unit}: {', '.join(f'{name} {steps:,}' for name, steps in longest.items())}"

    def scores(self, backbone: str) -> np.ndarray:
        """Return the last checkpoint's score for each seed [seeds]."""
        return np.array([run.score(self.kind) for run in self.runs[backbone]])

    def shared_scores(self, backbone: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of both backbones for the seeds that both have."""
        # A run that failed is missing on one side.
        own = self._score_by_seed(backbone)
        other = self._score_by_seed(reference)
        seeds = [seed for seed in own if seed in other]
        return np.array([own[seed] for seed in seeds]), np.array([other[seed] for seed in seeds])

    def _score_by_seed(self, backbone: str) -> dict[int, float]:
        return {run.seed: run.score(self.kind) for run in self.runs[backbone]}

    def curves(self, backbone: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps [N] and the values [seeds, N] of a metric.

        The steps lie where all runs of the backbone have the metric: from the last one's first step to the shortest
        one's end. The run that has most of them there gives them, and the others are interpolated. There are none if a
        run has no such metric.
        """
        curves = [run.curve(tag) for run in self.runs[backbone]]
        if any(len(steps) == 0 for steps, _ in curves):
            return np.empty(0), np.empty((0, 0))

        # Beyond its ends a run would be held level, which it never was.
        begin = max(steps[0] for steps, _ in curves)
        end = min(steps[-1] for steps, _ in curves)
        grid = max((steps[(begin <= steps) & (steps <= end)] for steps, _ in curves), key=len)
        return grid, np.array([np.interp(grid, steps, values) for steps, values in curves])

    def cost(self, backbone: str, tag: str) -> float | None:
        """Return the median over seeds of what each run cost; None if no run has the metric."""
        known = [value for run in self.runs[backbone] if (value := run.cost(tag)) is not None]
        if not known:
            return None
        return float(np.median(known))

    def latency(self, backbone: str) -> float:
        """Return the microseconds for a step of one environment, as the median over seeds."""
        return float(np.median([run.evaluation["step_latency_us"] for run in self.runs[backbone]]))

    def calibration(self, backbone: str) -> list[tuple[float, list[float]]]:
        """Return (the return that was asked for, the mean return of each seed), for agents that can be asked.

        A target return that some seed of the row was not asked for is left out.
        """
        # The mean return by target, for each seed.
        achieved: list[dict[float, float]] = []
        for run in self.runs[backbone]:
            results = run.evaluation["results"]
            achieved.append({result["target_return"]: result["return_mean"] for result in results})

        shared = [target for target in achieved[0] if all(target in returns for returns in achieved)]
        return [(target, [returns[target] for returns in achieved]) for target in shared if target is not None]

    def differences(self) -> list[str]:
        """Say in what the runs differ beside seed, backbone and the fields in its label.

        Each line makes the comparison unfair, or the runs of one row no seeds of one another.
        """
        varied = {name for label in self.runs for name in varied_fields(label)}
        configs = [_compared_config(run.config, varied) for run in self.all_runs]
        facts = varied | {SET_BY.get(name, name.removeprefix("evaluation.")) for name in varied}
        if all("max_steps" not in run.evaluation for run in self.all_runs):
            facts.add("max_steps")  # no episode was cut
        evaluations = [_compared_evaluation(run, facts) for run in self.all_runs]
        lines = _differences("config: {}", configs)
        for label, runs in self.runs.items():
            lines += _differences(f"config: {{}} of {label}", [_sizes(run.config) for run in runs])
        lines += _differences("evaluation: {}", evaluations)
        for tag in SCHEDULED:
            lines += _schedules(tag, self.all_runs)
        return lines


def _differences(words: str, records: list[dict[str, Any]]) -> list[str]:
    """Return a line for each key that does not have the same value in all records; one that is missing is null."""
    lines = []
    for key in dict.fromkeys(key for record in records for key in record):
        seen = sorted({json.dumps(record.get(key)) for record in records})
        if len(seen) > 1:
            lines.append(f"{words.format(key)} is {', '.join(_shortened(value) for value in seen)}")
    return lines


def _schedules(tag: str, runs: list[Run]) -> list[str]:
    """Say where runs of one config had different values of what falls over a run, as where one went on with more steps.

    The config says how many steps it had at the end, and the log by which schedule it learned before.
    """
    seen: dict[tuple[str, float], float] = {}
    for run in runs:
        config = json.dumps(_compared_config(run.config, set()))
        for step, value in zip(*run.curve(tag), strict=True):
            known = seen.setdefault((config, step), value)
            if not math.isclose(value, known, rel_tol=1e-6, abs_tol=1e-12):  # the last digits depend on the machine
                return [f"{tag} at step {step:,} is {known:.3g}, {value:.3g}"]
    return []


def _shortened(value: str) -> str:
    return value if len(value) < 40 else f"{value[:36]} …"


def _compared_config(config: dict[str, Any], varied: set[str]) -> dict[str, Any]:
    """Return the fields of a config that all runs of an experiment should have alike.

    The sizes of the backbones may differ: the report has them in a table.
    """
    left_out = (*NOT_COMPARED, "backbone", "evaluation")
    compared = {key: value for key, value in config.items() if key not in left_out}
    compared["backbone.n_layers"] = config["backbone"]["n_layers"]
    return _flat_without(compared, varied)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the runs of one row should have alike in their backbone, beside what all rows should."""
    return _flat_without({"backbone": config["backbone"]}, {"backbone.n_layers"})


def _flat_without(fields: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
    """Return the fields as pretrain.top_fraction and the like, without those that are left out, each with its parts."""
    prefixes = tuple(f"{name}." for name in left_out)
    return {key: value for key, value in flat(fields).items() if not f"{key}.".startswith(prefixes)}


def _compared_evaluation(run: Run, left_out: set[str]) -> dict[str, Any]:
    """Return the facts of an evaluation that all runs of an experiment should have alike."""
    evaluation = run.evaluation
    versions = evaluation.get("versions", {})
    mean = evaluation.get("dataset_return_mean")
    if mean is not None:
        mean = float(f"{mean:.6g}")  # the last digits may depend on the machine
    facts = {
        "env": evaluation["env"],
        "env_kwargs": evaluation.get("env_kwargs"),
        "dataset": {"return_mean": mean},  # a file of one name may have held something else
        "seeds": evaluation.get("seeds"),
        "memory": evaluation.get("memory"),
        "actions": evaluation.get("actions"),  # drawn from the policy, or None
        # The evaluation says it where an episode was cut, the config where none was.
        "max_steps": evaluation.get("max_steps", run.config.get("evaluation", {}).get("max_steps")),
        "target_return": [result["target_return"] for result in evaluation["results"]],
        "mujoco": versions.get("mujoco"),
        "torch": versions.get("torch"),
    }
    return _flat_without(facts, left_out)


def group(runs: Iterable[Run], order: list[str] | None = None) -> list[Experiment]:
    """Group runs into experiments by name.

    Backbones come in ``order``, and those that it does not name after them in the order of ``runs``.

    Raises:
        ComparisonError: there is no run.
    """
    # Sorted by seed first, so that every backbone has its runs in the order of their seeds.
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        found.setdefault(run.experiment, {}).setdefault(run.backbone, []).append(run)
    if not found:
        raise ComparisonError("no run has finished: nothing can be compared")

    experiments = []
    for name, by_backbone in found.items():
        names = dict.fromkeys([*(order or ()), *by_backbone])
        experiments.append(Experiment(name, {b: by_backbone[b] for b in names if b in by_backbone}))
    return experiments
