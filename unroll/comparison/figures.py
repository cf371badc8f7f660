"""The pictures of a comparison: square and with large letters, for they are shown as cards of 330 pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import matplotlib.colors

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.comparison.experiments import Experiment
from unroll.comparison.markdown import WORDS
from unroll.comparison.statistics import COVERED, FEWEST, SAMPLES, profile
from unroll.policies.backbones import BACKBONES

STYLE: dict[Any, Any] = {
    "font.size": 13,
    "figure.figsize": (5, 5),
    "figure.dpi": 66,
    "figure.constrained_layout.use": True,
}
PALETTE = list(matplotlib.colors.TABLEAU_COLORS)
COSTS = {
    "train_tokens_per_s": ("speed", "training tokens/s"),
    "step_latency_us": ("latency", "µs per step"),
    "peak_memory_mb": ("memory", "peak memory, MB"),
    "parameters": ("parameters", "parameters of the policy"),
}


def colours(backbones: list[str]) -> dict[str, Any]:
    """The same colour for a backbone in every picture."""
    known = [*BACKBONES, *(name for name in backbones if name not in BACKBONES)]
    return {name: PALETTE[known.index(name) % len(PALETTE)] for name in backbones}


def draw(experiment: Experiment, report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """(name, picture), the most important first; ``report`` is what the report says of the experiment."""
    pictures: dict[str, Callable[[Axes], None] | None] = {
        "1_score": lambda ax: scores(ax, report),
        "2_learning": (lambda ax: learning(ax, experiment, report)) if experiment.curve_tag else None,
        "3_profile": lambda ax: profiles(ax, experiment, report),
        "4_asked": (lambda ax: calibration(ax, report))
        if experiment.calibration(next(iter(experiment.runs)))
        else None,
    }
    for key, (name, label) in COSTS.items():
        values = [row[key] for row in report["backbones"].values()]
        if None not in values and max(values) > 1.1 * min(values):
            pictures[f"5_{name}"] = functools.partial(cost, report=report, key=key, label=label)
    for name, paint in pictures.items():
        if paint is not None:
            with plt.rc_context(STYLE):
                figure, axes = plt.subplots()
                paint(axes)
                yield name, figure
                plt.close(figure)


def scores(ax: Axes, report: dict[str, Any]) -> None:
    """A bar for each interquartile mean, its interval, and a dot for each seed."""
    rows = report["backbones"]
    colour = colours(list(rows))
    for place, (name, row) in enumerate(reversed(rows.items())):
        low, high = row["iqm_interval"] or (row["iqm"], row["iqm"])
        ax.barh(place, row["iqm"], color=colour[name], alpha=0.45)
        ax.plot([low, high], [place, place], color="black", lw=2.5, solid_capstyle="butt")
        ax.plot(row["scores"], [place] * len(row["scores"]), "o", color=colour[name], ms=5, mec="black", mew=0.6)
    ax.set_yticks(range(len(rows)), list(reversed(rows)))
    interval = f"IQM, {COVERED:.0%} interval" if next(iter(rows.values()))["iqm_interval"] else "no interval: few seeds"
    ax.set(title=interval, xlabel=WORDS[report["score"]])


def learning(ax: Axes, experiment: Experiment, report: dict[str, Any]) -> None:
    """Mean over seeds and its band."""
    assert experiment.curve_tag is not None
    for name in report["backbones"]:
        steps, values = experiment.curves(name, experiment.curve_tag)
        low, middle, high = band(values)
        colour = colours([name])[name]
        ax.plot(steps / 1000, middle, color=colour, lw=2, label=name)
        ax.fill_between(steps / 1000, low, high, color=colour, alpha=0.12, lw=0)
    title = "while learning" if experiment.curve_tag == experiment.tag else "returns while learning"
    ax.set(title=title, xlabel=f"thousand {experiment.unit}", ylabel=WORDS[report["score"]])
    if experiment.curve_tag != experiment.tag:
        ax.set_ylabel("return of the training episodes")
    ax.legend(fontsize=10)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and mean over the seeds of values [seeds, N]; without an interval, the range."""
    if len(values) < FEWEST:
        return values.min(0), values.mean(0), values.max(0)
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(len(values), size=(SAMPLES // 10, len(values)))].mean(1)
    low, high = np.quantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2], axis=0)
    return low, values.mean(0), high


def profiles(ax: Axes, experiment: Experiment, report: dict[str, Any]) -> None:
    """The share of seeds above each score."""
    every = np.concatenate([experiment.scores(name) for name in experiment.runs])
    margin = 0.03 * (np.ptp(every) or 1.0)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 200)
    for name in report["backbones"]:
        share, limits = profile([experiment.scores(name)], thresholds)
        colour = colours([name])[name]
        ax.step(thresholds, 100 * share, color=colour, lw=2, label=name, where="post")
        if limits is not None:
            low, high = 100 * limits.T
            ax.fill_between(thresholds, low, high, color=colour, alpha=0.08, lw=0, step="post")
    ax.set(title="performance profile", xlabel=f"{WORDS[report['score']]} τ", ylabel="% of seeds above τ")
    ax.legend(fontsize=10, loc="lower left")


def calibration(ax: Axes, report: dict[str, Any]) -> None:
    """Achieved over requested return."""
    for name, row in report["backbones"].items():
        targets = [target for target, _ in row["calibration"]]
        achieved = np.array([seeds for _, seeds in row["calibration"]]).T
        low, middle, high = band(achieved)
        colour = colours([name])[name]
        ax.plot(targets, middle, "o-", color=colour, lw=2, ms=4, label=name)
        ax.fill_between(targets, low, high, color=colour, alpha=0.12, lw=0)
    ax.axline((0, 0), slope=1, color="grey", ls=":", lw=1.5)
    ax.set(title="dotted: as asked", xlabel="return asked for", ylabel="return")
    ax.legend(fontsize=10)


def cost(ax: Axes, report: dict[str, Any], key: str, label: str) -> None:
    """Score over a cost; a line joins those that no other beats in both."""
    rows = report["backbones"]
    points = {name: (row[key], row["iqm"]) for name, row in rows.items()}
    better = max if key == "train_tokens_per_s" else min
    front = [n for n, p in points.items() if not any(beats(q, p, better) for q in points.values())]
    front.sort(key=lambda name: points[name])
    ax.plot(*zip(*(points[name] for name in front), strict=True), color="grey", lw=1.5, ls="--", zorder=0)
    for name, (x, y) in points.items():
        ax.plot(x, y, "o", color=colours([name])[name], ms=10, mec="black" if name in front else "none", label=name)
    ax.set(title="dashed: Pareto front", xlabel=label, ylabel=f"{WORDS[report['score']]}, IQM")
    ax.set_xlim(0, 1.1 * max(x for x, _ in points.values()))
    ax.margins(y=0.15)
    ax.locator_params("x", nbins=5)
    ax.legend(fontsize=10)


def beats(a: tuple[float, float], b: tuple[float, float], better: Callable[..., float]) -> bool:
    """Whether a is at least as good as b in cost and score, and better in one of them."""
    return a != b and better(a[0], b[0]) == a[0] and a[1] >= b[1]
