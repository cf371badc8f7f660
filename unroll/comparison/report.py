"""The report of a comparison, as data: scores with intervals, costs, and what was equal and what was not."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from unroll.agents.evaluation.scoring import cut_and_played
from unroll.comparison.experiments import Experiment
from unroll.comparison.runs import MEMORY, Run
from unroll.comparison.statistics import (
    FEWEST,
    Interval,
    Scores,
    aggregate,
    iqm,
    mean,
    paired_difference,
    probability_of_improvement,
)
from unroll.comparison.variants import check_reference

SPEED = "perf/train_tokens_per_s"
PARAMETERS = "perf/parameters"

Rows = dict[str, dict[str, Any]]  # a row of the report for each backbone


def make_report(
    experiments: list[Experiment], reference: str | None = None, facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make the content of comparison.json.

    Args:
        reference: the backbone that the others are compared with; None: the first.
        facts: more entries: the command, how hyperparameters were chosen, runs that failed.

    Raises:
        ComparisonError: there are no runs of the reference.
    """
    names = list(dict.fromkeys(backbone for experiment in experiments for backbone in experiment.runs))
    check_reference(reference, names)
    if reference is None:
        reference = names[0]

    machines: set[str] = set()
    for experiment in experiments:
        machines.update(run.evaluation.get("machine", "unknown") for run in experiment.all_runs)

    report: dict[str, Any] = {
        **(facts or {}),
        "machines": sorted(machines),
        "reference": reference,
        "experiments": {e.name: describe(e, reference) for e in experiments},
    }

    # Only normalised scores can be put together, and only of backbones that have runs in every experiment.
    everywhere = [name for name in names if all(name in e.runs for e in experiments)]
    normalized = all(e.kind == "normalized_score" for e in experiments)
    if len(experiments) > 1 and everywhere and normalized:
        report["overall"] = overall(experiments, everywhere, reference)
        report["not_overall"] = {
            name: [e.name for e in experiments if name not in e.runs] for name in names if name not in everywhere
        }
    return report


def describe(experiment: Experiment, reference: str) -> dict[str, Any]:
    """Describe one experiment: how it was run, and a row for each backbone, the best first."""
    config = experiment.first.config
    evaluation = experiment.first.evaluation
    rows = {name: row(experiment, name, reference) for name in experiment.runs}
    return {
        "agent": evaluation.get("agent", config["agent"]),
        "env": named(run.evaluation["env"] for run in experiment.all_runs),
        "env_kwargs": common_kwargs(experiment),
        "dataset": _in_words(config.get("dataset")),
        "score": experiment.kind,
        "scale": named(run.evaluation.get("reference") for run in experiment.all_runs),
        "steps": experiment.steps,
        "seeds": sorted({run.seed for run in experiment.all_runs}),
        "threads": sorted({run.config.get("threads") or 0 for run in experiment.all_runs}),
        "parameters": parameters(experiment),
        "evaluation": {
            "episodes": equal(run.evaluation["episodes"] for run in experiment.all_runs),
            "first_seed": equal(run.evaluation["seeds"] for run in experiment.all_runs) and evaluation["seeds"][0],
            "targets": [result["target_return"] for result in evaluation["results"]],
            "memory": equal(run.evaluation.get("memory") for run in experiment.all_runs),
            "actions": equal(run.evaluation.get("actions") for run in experiment.all_runs),
            "devices": devices(experiment),
            **cuts(experiment),
        },
        "differences": experiment.differences(),
        "backbones": best_first(rows),
    }


def equal(values: Iterable[Any]) -> Any:
    """Return the value if all are equal, else None."""
    first, *others = values
    return first if all(other == first for other in others) else None


def named(names: Iterable[str | None]) -> str | None:
    """Name each of what the runs have once; None where they have none."""
    return " and ".join(dict.fromkeys(name for name in names if name)) or None


def common_kwargs(experiment: Experiment) -> dict[str, Any]:
    """Return the arguments of the environment that all runs have alike: what is varied is said by the rows."""
    given = [run.evaluation.get("env_kwargs") or {} for run in experiment.all_runs]
    missing = object()
    return {key: value for key, value in given[0].items() if all(one.get(key, missing) == value for one in given)}


def devices(experiment: Experiment) -> list[str]:
    """Name the devices on which the runs were evaluated; evaluations of before do not say it, and then none is."""
    if any("device" not in run.evaluation for run in experiment.all_runs):
        return []
    return sorted({run.evaluation["device"] for run in experiment.all_runs})


def cuts(experiment: Experiment) -> dict[str, Any]:
    """Count the episodes of all runs that were cut; ``max_steps`` is None if they were not cut after as many steps."""
    counts = [cut_and_played(run.evaluation) for run in experiment.all_runs]
    limits = {run.evaluation["max_steps"] for run in experiment.all_runs if "max_steps" in run.evaluation}
    return {
        "cut": sum(cut for cut, _ in counts),
        "played": sum(played for _, played in counts),
        "max_steps": limits.pop() if len(limits) == 1 else None,
    }


def parameters(experiment: Experiment) -> list[float] | None:
    """Return the smallest and the largest number of parameters that a run has; None if no run logged it."""
    sizes = [size for run in experiment.all_runs if (size := run.cost(PARAMETERS))]
    return [min(sizes), max(sizes)] if sizes else None


def _in_words(dataset: str | list[str] | None) -> str | None:
    return " and ".join(dataset) if isinstance(dataset, list) else dataset


def row(experiment: Experiment, backbone: str, reference: str) -> dict[str, Any]:
    """Describe one backbone of an experiment: its scores, its costs, and how it compares with the reference."""
    runs = experiment.runs[backbone]
    scores = experiment.scores(backbone)
    found: dict[str, Any] = {
        "seeds": [run.seed for run in runs],
        "scores": scores.tolist(),
        "returns": [run.result["return_mean"] for run in runs],
        **averages([scores]),
        "return_without_memory": without_memory(runs),
        "calibration": experiment.calibration(backbone),
        "train_tokens_per_s": experiment.cost(backbone, SPEED),
        "step_latency_us": experiment.latency(backbone),
        "peak_memory_mb": experiment.cost(backbone, MEMORY),
        "parameters": experiment.cost(backbone, PARAMETERS),
        "d_model": equal(run.config["backbone"]["d_model"] for run in runs),
        "evaluation_episodes": sum(run.episodes_used for run in runs),
    }

    # The reference may have no run here, if all of them failed.
    if backbone != reference and reference in experiment.runs:
        found |= against([experiment], backbone, reference)
    return found


def without_memory(runs: list[Run]) -> float | None:
    """Return the mean return of PPO's agents with the memory wiped before every step.

    None where some run has none: the mean of others stands beside it.
    """
    if any("ablation" not in run.evaluation for run in runs):
        return None
    return statistics.mean(run.evaluation["ablation"]["return_mean"] for run in runs)


def overall(experiments: list[Experiment], backbones: list[str], reference: str) -> Rows:
    """Put all experiments together: a row for each backbone, the best first."""
    rows: Rows = {}
    for backbone in backbones:
        rows[backbone] = averages([e.scores(backbone) for e in experiments])
        if backbone != reference and reference in backbones:
            rows[backbone] |= against(experiments, backbone, reference)
    return best_first(rows)


def averages(scores: Scores) -> dict[str, Any]:
    """Return the interquartile mean and the mean over all tasks, which weigh the same, with their intervals."""
    middle, middle_interval = aggregate(iqm, scores)
    average, average_interval = aggregate(mean, scores)
    return {
        "iqm": middle,
        "iqm_interval": middle_interval,
        "mean": average,
        "mean_interval": average_interval,
    }


def against(experiments: list[Experiment], backbone: str, reference: str) -> dict[str, Any]:
    """Compare a backbone with the reference over one experiment or several."""
    scores = [e.scores(backbone) for e in experiments]
    reference_scores = [e.scores(reference) for e in experiments]
    probability, interval = probability_of_improvement(scores, reference_scores)
    found: dict[str, Any] = {"probability_of_improvement": probability, "probability_interval": interval}

    # Runs are paired by seed. An experiment whose backbones share no seed has no pairs.
    own: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for experiment in experiments:
        own_shared, other_shared = experiment.shared_scores(backbone, reference)
        own.append(own_shared)
        other.append(other_shared)
    if all(len(shared) for shared in own):
        difference, interval = paired_difference(own, other)
        found |= {"paired_difference": difference, "paired_interval": interval}
    return found


def best_first(rows: Rows) -> Rows:
    """Order the rows by interquartile mean, then by mean."""
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["iqm"], -item[1]["mean"])))


def leaders(rows: Rows) -> tuple[str, list[str]]:
    """Return the backbone of the highest interquartile mean, and the others that are not distinguished from it.

    A backbone is distinguished if its interval ends below that of the first. Without intervals none is.
    """
    first, *others = rows
    best: Interval | None = rows[first]["iqm_interval"]
    near = []
    for name in others:
        interval: Interval | None = rows[name]["iqm_interval"]
        if best is None or interval is None or interval[1] >= best[0]:
            near.append(name)
    return first, near


def too_few(report: dict[str, Any]) -> bool:
    """Tell whether some backbone of some experiment has too few seeds for an interval."""
    for experiment in report["experiments"].values():
        for row in experiment["backbones"].values():
            if len(row["scores"]) < FEWEST:
                return True
    return False
