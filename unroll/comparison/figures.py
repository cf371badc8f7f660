"""The pictures of a comparison: square and with large letters, because TensorBoard shows 330 pixels of them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.comparison.experiments import Experiment
from unroll.comparison.markdown import WORDS
from unroll.comparison.statistics import COVERED, FEWEST, QUANTILES, SAMPLES, profile
from unroll.pictures.style import PALETTE
from unroll.policies.backbones import BACKBONES

STYLE: dict[Any, Any] = {
    "font.size": 13,
    "figure.figsize": (5, 5),
    "figure.dpi": 66,
    "figure.constrained_layout.use": True,
}
SHEET_ROWS = 20  # rows on one picture
SHEET_COLUMNS = 3  # experiments in a row, where there are more than that
SHEET_DPI = 80  # 800 pixels wide
SECOND = ("4_asked", "2_learning", "3_profile")  # the picture beside the scores: the first that there is
BAND_SAMPLES = SAMPLES // 10  # a curve has an interval at each of its points

# Key of a report's row → the name of its picture, and the label of the axis.
COSTS = {
    "train_tokens_per_s": ("speed", "training tokens/s"),
    "step_latency_us": ("latency", "µs per step"),
    "peak_memory_mb": ("memory", "peak memory, MB"),
    "parameters": ("parameters", "parameters of the policy"),
}
Painter = Callable[[Axes], None]


def draw(experiment: Experiment, report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Yield (name, picture), the most important first. ``report`` is the experiment's part of the report."""
    for name, paint in painters(experiment, report).items():
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots()
            paint(axes)
            yield name, figure
            plt.close(figure)


def draw_sheet(experiments: list[Experiment], report: dict[str, Any]) -> Figure:
    """Draw all on one picture.

    A few experiments have a row each, with the scores and what says most beside them; of more there are the scores.
    """
    if len(experiments) > SHEET_COLUMNS:
        return _draw_scores(experiments, report)
    shown = experiments[:SHEET_ROWS]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 5.4 * len(shown)), dpi=SHEET_DPI)
        rows = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
        for row, experiment in zip(rows, shown, strict=True):
            pictures = painters(experiment, report["experiments"][experiment.name])
            second = next(name for name in SECOND if name in pictures)
            left, right = row.subplots(1, 2)
            pictures["1_score"](left)
            pictures[second](right)
            # The names stand beside the scores, in the same colours. Long ones would hide the curves.
            right.get_legend().remove()
            row.suptitle(experiment.name)
        plt.close(figure)
    return figure


def _draw_scores(experiments: list[Experiment], report: dict[str, Any]) -> Figure:
    """Draw the scores of each experiment, three in a row."""
    shown = experiments[: SHEET_ROWS * SHEET_COLUMNS]
    rows = math.ceil(len(shown) / SHEET_COLUMNS)
    with plt.rc_context(STYLE | {"font.size": 9}):
        figure, grid = plt.subplots(rows, SHEET_COLUMNS, figsize=(10, 2.6 * rows), dpi=SHEET_DPI, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, experiment in zip(grid.flat, shown, strict=False):
            scores(axes, report["experiments"][experiment.name])
            axes.set_title(f"{experiment.name}\n{axes.get_title()}", fontsize=9)
        plt.close(figure)
    return figure


def painters(experiment: Experiment, report: dict[str, Any]) -> dict[str, Painter]:
    """Return a function for each picture of which there are data."""
    pictures: dict[str, Painter] = {"1_score": lambda ax: scores(ax, report)}
    if experiment.curve_tag:
        pictures["2_learning"] = lambda ax: learning(ax, experiment, report)
    pictures["3_profile"] = lambda ax: profiles(ax, experiment, report)
    if any(row["calibration"] for row in report["backbones"].values()):
        pictures["4_asked"] = lambda ax: calibration(ax, report)

    # A cost that hardly differs has nothing to show.
    for key, (name, label) in COSTS.items():
        values = [row[key] for row in report["backbones"].values()]
        if None not in values and max(values) > 1.1 * min(values):
            pictures[f"5_{name}"] = functools.partial(cost, report=report, key=key, label=label)
    return pictures


def colours(report: dict[str, Any]) -> dict[str, str]:
    """Return a colour for each row, the same in every picture of the experiment.

    A backbone always has the same one; variants and backbones of the user's own take those that are left.
    """
    places = {name: place % len(PALETTE) for place, name in enumerate(BACKBONES) if name in report["backbones"]}
    left = [place for place in range(len(PALETTE)) if place not in places.values()] or range(len(PALETTE))
    others = (name for name in report["backbones"] if name not in places)
    places |= dict(zip(others, itertools.cycle(left)))
    return {name: PALETTE[place] for name, place in places.items()}


def scores(ax: Axes, report: dict[str, Any]) -> None:
    """Draw each interquartile mean, its interval, and a dot for each seed.

    A normalised score, of which 0 means something, is a bar; a return is a diamond.
    """
    rows = report["backbones"]
    colour = colours(report)
    with_interval = any(row["iqm_interval"] is not None for row in rows.values())

    # Places count from below, and the best backbone is on top.
    for place, (name, row) in enumerate(reversed(rows.items())):
        low, high = row["iqm_interval"] or (row["iqm"], row["iqm"])
        dots = row["scores"]
        if report["score"] == "normalized_score":
            ax.barh(place, row["iqm"], color=colour[name], alpha=0.45)
        else:
            ax.plot(row["iqm"], place, "D", color=colour[name], ms=11, alpha=0.45)
        ax.plot([low, high], [place, place], color="black", lw=2.5, solid_capstyle="butt")
        ax.plot(dots, [place] * len(dots), "o", color=colour[name], ms=5, mec="black", mew=0.6)
    ax.set_yticks(range(len(rows)), list(reversed(rows)))

    title = "no interval: few seeds"
    if with_interval:
        title = f"IQM, {COVERED:.0%} interval"
    ax.set(title=title, xlabel=WORDS[report["score"]])


def learning(ax: Axes, experiment: Experiment, report: dict[str, Any]) -> None:
    """Draw the mean over seeds and its band."""
    assert experiment.curve_tag is not None
    colour = colours(report)
    for name in report["backbones"]:
        steps, values = experiment.curves(name, experiment.curve_tag)
        draw_curve(ax, steps / 1000, values, name, colour[name])

    # Without evaluations while learning the curves are those of PPO's own episodes.
    title = "while learning"
    label = WORDS[report["score"]]
    if experiment.curve_tag != experiment.tag:
        title = "returns while learning"
        label = "return of the training episodes"
    ax.set(title=title, xlabel=f"thousand {experiment.unit}", ylabel=label)
    ax.legend(fontsize=10)


def calibration(ax: Axes, report: dict[str, Any]) -> None:
    """Draw the return that was achieved over the return that was asked for."""
    colour = colours(report)
    for name, row in report["backbones"].items():
        if not row["calibration"]:  # its seeds share no target, or were asked for nothing
            continue
        targets = [target for target, _ in row["calibration"]]
        achieved = np.array([returns for _, returns in row["calibration"]]).T  # [seeds, targets]
        draw_curve(ax, targets, achieved, name, colour[name], marker="o", ms=4)
    ax.axline((0, 0), slope=1, color="grey", ls=":", lw=1.5)
    ax.set(title="dotted: as asked", xlabel="return asked for", ylabel="return")
    ax.legend(fontsize=10)


def draw_curve(ax: Axes, x: Any, values: np.ndarray, name: str, colour: str, **style: Any) -> None:
    """Draw the mean of values [seeds, N] over x [N], and its band."""
    low, middle, high = band(values)
    ax.plot(x, middle, color=colour, lw=2, label=name, **style)
    ax.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lower end of the interval, the mean and the upper end over the seeds of values [seeds, N].

    With too few seeds for an interval its ends are the mean.
    """
    if len(values) < FEWEST:
        return values.mean(0), values.mean(0), values.mean(0)

    # A bootstrap of the mean, over whole curves.
    random = np.random.default_rng(0)
    indices = random.integers(len(values), size=(BAND_SAMPLES, len(values)))
    low, high = np.quantile(values[indices].mean(1), QUANTILES, axis=0)
    return low, values.mean(0), high


def profiles(ax: Axes, experiment: Experiment, report: dict[str, Any]) -> None:
    """Draw the share of seeds above each score."""
    colour = colours(report)

    # The thresholds reach a little beyond the scores of all backbones.
    every = np.concatenate([experiment.scores(name) for name in experiment.runs])
    margin = 0.03 * (np.ptp(every) or 1.0)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 200)
    for name in report["backbones"]:
        share, limits = profile([experiment.scores(name)], thresholds)
        ax.step(thresholds, 100 * share, color=colour[name], lw=2, label=name, where="post")
        if limits is not None:
            low, high = 100 * limits.T
            ax.fill_between(thresholds, low, high, color=colour[name], alpha=0.08, lw=0, step="post")
    ax.set(title="performance profile", xlabel=f"{WORDS[report['score']]} τ", ylabel="% of seeds above τ")
    ax.legend(fontsize=10, loc="lower left")


def cost(ax: Axes, report: dict[str, Any], key: str, label: str) -> None:
    """Draw the score over a cost. A line joins the backbones that no other one beats in both."""
    colour = colours(report)
    points = {name: (row[key], row["iqm"]) for name, row in report["backbones"].items()}
    better = max if key == "train_tokens_per_s" else min

    # The Pareto front, from left to right.
    front = []
    for name, point in points.items():
        if not any(beats(other, point, better) for other in points.values()):
            front.append(name)
    front.sort(key=lambda name: points[name])
    costs, heights = zip(*(points[name] for name in front), strict=True)
    ax.plot(costs, heights, color="grey", lw=1.5, ls="--", zorder=0)

    for name, (x, y) in points.items():
        edge = "black" if name in front else "none"
        ax.plot(x, y, "o", color=colour[name], ms=10, mec=edge, label=name)
    ax.set(title="dashed: Pareto front", xlabel=label, ylabel=f"{WORDS[report['score']]}, IQM")
    ax.set_xlim(0, 1.1 * max(x for x, _ in points.values()))
    ax.margins(y=0.15)
    ax.locator_params("x", nbins=5)
    ax.legend(fontsize=10)


def beats(a: tuple[float, float], b: tuple[float, float], better: Callable[..., float]) -> bool:
    """Tell whether a is at least as good as b in cost and score, and better in one of them."""
    return a != b and better(a[0], b[0]) == a[0] and a[1] >= b[1]
