"""The report of a comparison, as data: scores with intervals, costs, and what was equal and what was not."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from unroll.comparison.experiments import Experiment
from unroll.comparison.runs import Run
from unroll.comparison.statistics import FEWEST, aggregate, iqm, mean, paired_difference, probability_of_improvement
from unroll.errors import ComparisonError

SPEED, MEMORY, PARAMETERS = "perf/train_tokens_per_s", "perf/peak_memory_mb", "perf/parameters"
WIPED = "eval/return_mean_without_memory"


def make_report(
    experiments: list[Experiment], reference: str | None = None, facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What comparison.json holds. ``reference``: the backbone that the others are compared with; None: the first.

    ``facts`` are added: the command, how hyperparameters were chosen, cells that failed.

    Raises:
        ComparisonError: no such backbone.
    """
    names = list(dict.fromkeys(backbone for experiment in experiments for backbone in experiment.runs))
    if reference is not None and reference not in names:
        raise ComparisonError(f"reference {reference!r}: there are runs of {', '.join(names)}")
    report: dict[str, Any] = {
        **(facts or {}),
        "machines": sorted({run.evaluation.get("machine", "unknown") for e in experiments for run in e.all_runs}),
        "reference": reference or names[0],
        "experiments": {e.name: describe(e, reference or names[0]) for e in experiments},
    }
    together = [b for b in names if all(b in e.runs for e in experiments)]
    if len(experiments) > 1 and together and all(e.kind == "normalized_score" for e in experiments):
        report["overall"] = overall(experiments, together, reference or names[0])
    return report


def describe(experiment: Experiment, reference: str) -> dict[str, Any]:
    """One experiment: how it was run, and a row for each backbone by interquartile mean, then by mean."""
    config, evaluation = experiment.first.config, experiment.first.evaluation
    rows = {name: row(experiment, name, reference) for name in experiment.runs}
    return {
        "agent": evaluation.get("agent", config["agent"]),
        "env": evaluation["env"],
        "dataset": config.get("dataset"),
        "score": experiment.kind,
        "scale": evaluation.get("reference"),
        "steps": experiment.steps,
        "seeds": sorted({run.seed for run in experiment.all_runs}),
        "threads": config.get("threads"),
        "evaluation": {
            "episodes": evaluation["episodes"],
            "first_seed": evaluation["seeds"][0],
            "targets": [result["target_return"] for result in evaluation["results"]],
            "memory": evaluation.get("memory"),
        },
        "differences": experiment.differences(),
        "backbones": dict(sorted(rows.items(), key=lambda item: (-item[1]["iqm"], -item[1]["mean"]))),
    }


def row(experiment: Experiment, backbone: str, reference: str) -> dict[str, Any]:
    """One backbone of an experiment."""
    runs, scores = experiment.runs[backbone], experiment.scores(backbone)
    middle, middle_interval = aggregate(iqm, [scores])
    average, average_interval = aggregate(mean, [scores])
    found: dict[str, Any] = {
        "seeds": [run.seed for run in runs],
        "scores": scores.tolist(),
        "returns": [run.result["return_mean"] for run in runs],
        "iqm": middle,
        "iqm_interval": middle_interval,
        "mean": average,
        "mean_interval": average_interval,
        "return_without_memory": without_memory(runs),
        "calibration": experiment.calibration(backbone),
        "train_tokens_per_s": experiment.median(backbone, SPEED),
        "step_latency_us": experiment.latency(backbone),
        "peak_memory_mb": experiment.median(backbone, MEMORY),
        "parameters": experiment.median(backbone, PARAMETERS),
        "d_model": runs[0].config["backbone"]["d_model"],
        "evaluation_episodes": sum(run.episodes_used for run in runs),
    }
    if backbone != reference and reference in experiment.runs:
        found |= against([scores], [experiment.scores(reference)], [experiment.shared_scores(backbone, reference)])
    return found


def without_memory(runs: list[Run]) -> float | None:
    """The mean return of PPO's agents with the memory wiped before every step."""
    wiped = [run.evaluation["ablation"]["return_mean"] for run in runs if "ablation" in run.evaluation]
    return statistics.mean(wiped) if wiped else None


def against(scores: list[np.ndarray], reference: list[np.ndarray], pairs: list[Any]) -> dict[str, Any]:
    """A backbone against the reference, over one experiment or several."""
    probability, interval = probability_of_improvement(scores, reference)
    found = {"probability_of_improvement": probability, "probability_interval": interval}
    if all(len(own) for own, _ in pairs):
        difference, interval = paired_difference(*zip(*pairs, strict=True))
        found |= {"paired_difference": difference, "paired_interval": interval}
    return found


def overall(experiments: list[Experiment], backbones: list[str], reference: str) -> dict[str, Any]:
    """Over all experiments, for backbones that have runs in each: normalised scores alone can be put together."""
    rows: dict[str, dict[str, Any]] = {}
    for backbone in backbones:
        scores = [e.scores(backbone) for e in experiments]
        middle, middle_interval = aggregate(iqm, scores)
        average, average_interval = aggregate(mean, scores)
        rows[backbone] = {
            "iqm": middle,
            "iqm_interval": middle_interval,
            "mean": average,
            "mean_interval": average_interval,
        }
        if backbone != reference and reference in backbones:
            pairs = [e.shared_scores(backbone, reference) for e in experiments]
            rows[backbone] |= against(scores, [e.scores(reference) for e in experiments], pairs)
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["iqm"], -item[1]["mean"])))


def leaders(rows: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """The backbone of the highest interquartile mean, and those whose intervals reach into its own: nothing is shown
    between them, and without intervals of none."""
    first, *others = rows
    best = rows[first]["iqm_interval"]
    return first, [b for b in others if best is None or (i := rows[b]["iqm_interval"]) is None or i[1] >= best[0]]


def too_few(report: dict[str, Any]) -> bool:
    """Whether some experiment has too few seeds for intervals."""
    rows = [row for e in report["experiments"].values() for row in e["backbones"].values()]
    return min(len(row["scores"]) for row in rows) < FEWEST
