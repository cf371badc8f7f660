"""Draw an evaluation: returns over the returns that were asked for, or returns with and without memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unroll.pictures.style import BLUE, GREY, RED, picture
from unroll.tables import exact

SPREAD = 0.12  # how far the dots of a row lie apart, of the distance between rows

MOST_TICKS = 6  # targets that are written at the axis; more would lie over one another


def draw_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    """Write the picture of an evaluation, as ``unroll evaluate`` writes it to JSON, to ``path`` (.png)."""
    with picture(path, 800, 500) as figure:
        axes = figure.subplots()
        if evaluation["results"][0]["target_return"] is None:
            _rows(axes, evaluation)
        else:
            _asked(axes, evaluation)
        episodes = evaluation["episodes"]
        what = f"dot: an episode; diamond: mean{' with 95 % interval' if episodes > 1 else ''}"
        axes.set_title(f"{evaluation['env']}, {episodes} episodes each\n{what}")


def _asked(axes: Axes, evaluation: dict[str, Any]) -> None:
    """Draw the achieved return over the return that was asked for."""
    results = sorted(evaluation["results"], key=lambda result: result["target_return"])
    targets = [result["target_return"] for result in results]
    axes.axline((targets[0], targets[0]), slope=1, color=GREY, ls=":", lw=1.5, label="as asked")
    mean = evaluation.get("dataset_return_mean")
    if mean is not None:
        axes.axhline(mean, color=RED, ls="--", lw=1.5, label="mean of the dataset")

    for result in results:
        target = result["target_return"]
        axes.plot([target] * len(result["returns"]), result["returns"], "o", color=BLUE, ms=5, alpha=0.35, mew=0)
        if len(result["returns"]) > 1:
            axes.plot([target, target], result["return_interval"], color="black", lw=2)
    means = [result["return_mean"] for result in results]
    axes.plot(targets, means, "D", color=BLUE, mec="black", ms=8, label="achieved")

    if len(targets) <= MOST_TICKS:
        axes.set_xticks(targets, [exact(target) for target in targets])
    axes.margins(0.08)
    axes.set(xlabel="return asked for", ylabel="return achieved")
    axes.legend()


def _rows(axes: Axes, evaluation: dict[str, Any]) -> None:
    """Draw a row of returns for the agent as it is and, where that was played, one for its memory wiped."""
    rows = [(evaluation["memory"], evaluation["results"][0])]
    if "ablation" in evaluation:
        rows.append((evaluation["ablation"]["memory"], evaluation["ablation"]))

    random = np.random.default_rng(0)
    for place, (_, result) in enumerate(rows):
        heights = place + random.uniform(-SPREAD, SPREAD, len(result["returns"]))
        axes.plot(result["returns"], heights, "o", color=BLUE, ms=6, alpha=0.45, mew=0)
        if len(result["returns"]) > 1:
            axes.plot(result["return_interval"], [place, place], color="black", lw=2)
        axes.plot(result["return_mean"], place, "D", color=BLUE, mec="black", ms=9)

    axes.set_yticks(range(len(rows)), [f"memory\n{name}" for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("return")
