"""Draw a dataset on one page: what it holds, how it ends, where it has been, and what it did there."""

from __future__ import annotations

import textwrap
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from unroll.envs.datasets.doctor import inconsistencies, problems, remarks
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import as_numbers
from unroll.envs.datasets.statistics import read
from unroll.pictures.style import BLUE, DENSITY, GREEN, GREY, ORANGE, RED, picture

WIDTH = 800
HEIGHT = 1060
BINS = 40
SAMPLE = 100_000  # rows of the observations that are drawn, evenly spaced
SPAN = 4.0  # standard deviations to both sides of the mean
MOST_COLUMNS = 400  # observed numbers that the coverage shows


def draw_dataset(episodes: Episodes, source: str, path: Path) -> None:
    """Write the page of a dataset to ``path`` (.png).

    Values that are not finite are left out. Of arrays that do not fit each other nothing is drawn: the page says so.
    """
    with picture(path, WIDTH, HEIGHT) as figure:
        head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 9])[:, 0]
        _head(head, episodes, source)
        if inconsistencies(episodes):
            return

        # The statistics of NaN are NaN; the head says where they are.
        with np.errstate(all="ignore"):
            body.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
            panels = body.subplots(3, 2)
            _returns(panels[0, 0], episodes)
            _lengths(panels[0, 1], episodes)
            _rewards(panels[1, 0], episodes)
            _actions(panels[1, 1], episodes)
            scaled = _scaled(episodes)
            _observations(panels[2, 0], scaled, episodes.observation_dim)
            _coverage(panels[2, 1], scaled)


def _head(figure: FigureBase, episodes: Episodes, source: str) -> None:
    """Write the name, the size and the verdict."""
    found = problems(episodes)
    env = episodes.env_id or "no environment named"
    figure.text(0.02, 0.92, _short(source, 60), fontsize=15, fontweight="bold", va="top")
    size = f"{_short(env, 50)}; {len(episodes):,} episodes, {episodes.n_steps:,} steps"
    figure.text(0.02, 0.60, size, va="top")

    verdict = "can be trained on: yes"
    colour = GREEN
    if found:
        verdict = f"can be trained on: no: {'; '.join(found)}"
        colour = RED
    lines = [verdict, *(f"note: {remark}" for remark in remarks(episodes))]
    text = textwrap.wrap(" · ".join(lines), width=105, max_lines=3, placeholder=" …")
    figure.text(0.02, 0.34, "\n".join(text), fontsize=10, color=colour, va="top")


def _short(text: str, most: int) -> str:
    """Cut a text in its middle."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}…{text[-half:]}"


def _returns(axes: Axes, episodes: Episodes) -> None:
    """Draw how many episodes have each return."""
    returns = _finite(episodes.returns)
    axes.set(title="returns", xlabel="return", ylabel="episodes")
    if len(returns):
        axes.hist(returns, BINS, color=BLUE)
        _mark(axes, float(np.median(returns)), "median")


def _lengths(axes: Axes, episodes: Episodes) -> None:
    """Draw how many episodes have each length, by how they ended."""
    unfinished = ~(episodes.terminated | episodes.truncated)
    ends = {
        "terminated": (episodes.terminated, BLUE),
        "truncated": (episodes.truncated & ~episodes.terminated, ORANGE),
        "unfinished": (unfinished, GREY),
    }
    groups = {}
    for name, (chosen, colour) in ends.items():
        if chosen.any():
            groups[name] = (episodes.lengths[chosen], colour)

    values = [lengths for lengths, _ in groups.values()]
    colours = [colour for _, colour in groups.values()]
    axes.hist(values, BINS, stacked=True, color=colours, label=list(groups))
    axes.set(title="lengths, by how episodes end", xlabel="steps", ylabel="episodes")
    axes.legend(fontsize=9)


def _rewards(axes: Axes, episodes: Episodes) -> None:
    """Draw how many steps have each reward. The axis is logarithmic: a rare reward is what is learned from."""
    axes.set(title="rewards", xlabel="reward", ylabel="steps", yscale="log")
    low = np.inf
    high = -np.inf
    for part in read(episodes.rewards):
        part = _finite(part)
        low = min(low, float(part.min(initial=np.inf)))
        high = max(high, float(part.max(initial=-np.inf)))
    if low > high:
        return
    edges = np.histogram_bin_edges(np.array([low, high]), BINS)
    counts = np.zeros(BINS, np.int64)
    for part in read(episodes.rewards):
        counts += np.histogram(_finite(part).astype(np.float64), edges)[0]
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.set_ylim(bottom=0.5)


def _actions(axes: Axes, episodes: Episodes) -> None:
    """Draw how often each choice was made, or how often each number of an action was at a bound."""
    space = episodes.action_space
    if isinstance(space, gym.spaces.Discrete):
        n = int(space.n)
        chosen = np.zeros(n, np.int64)
        for part in read(episodes.actions):
            chosen += np.bincount(np.clip(part, 0, n - 1), minlength=n)
        axes.bar(np.arange(n) + int(space.start), 100 * chosen / chosen.sum(), color=BLUE)
        axes.set(title="actions", xlabel="action", ylabel="% of the steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return

    width = episodes.actions.shape[1]
    lowest = np.zeros(width)
    highest = np.zeros(width)
    for part in read(episodes.actions):
        lowest += (part <= space.low.reshape(-1)).sum(0)
        highest += (part >= space.high.reshape(-1)).sum(0)
    low_share = 100 * lowest / episodes.n_steps
    high_share = 100 * highest / episodes.n_steps
    axes.bar(np.arange(width), low_share, color=BLUE, label="lowest")
    axes.bar(np.arange(width), high_share, bottom=low_share, color=ORANGE, label="highest")
    title = f"actions at their bounds: {(low_share + high_share).mean():.1f} %"
    axes.set(title=title, xlabel="number of the action", ylabel="% of the steps", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=9)


def _observations(axes: Axes, scaled: np.ndarray, width: int) -> None:
    """Draw where each observed number has been, in standard deviations around its mean."""
    edges = np.linspace(-SPAN, SPAN, BINS + 1)
    counts = np.zeros((BINS, scaled.shape[1]))
    for column in range(scaled.shape[1]):
        # What lies further out is counted at the edge.
        counts[:, column] = np.histogram(np.clip(scaled[:, column], -SPAN, SPAN), edges)[0]
    title = "observed numbers"
    if width > MOST_COLUMNS:
        title += f", the first {MOST_COLUMNS} of {width:,}"
    title += "\n(bright: many steps)"
    axes.set(title=title, xlabel="observed number", ylabel="standard deviations")
    if counts.any():
        extent = (-0.5, scaled.shape[1] - 0.5, -SPAN, SPAN)
        shares = np.ma.masked_equal(counts / len(scaled), 0)
        axes.imshow(shares, DENSITY, LogNorm(), aspect="auto", interpolation="nearest", origin="lower", extent=extent)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _coverage(axes: Axes, scaled: np.ndarray) -> None:
    """Draw how often each place was visited, in the plane in which the observations vary most."""
    axes.set(title="coverage", xlabel="first principal component", ylabel="second")
    if len(scaled) < 2 or scaled.shape[1] < 2:
        axes.text(0.5, 0.5, "needs two observed numbers", transform=axes.transAxes, ha="center", color=GREY)
        return

    # The directions in which the scaled observations vary most: eigenvectors of their covariance, largest last.
    shares, directions = np.linalg.eigh(np.cov(scaled, rowvar=False))
    plane = scaled @ directions[:, [-1, -2]]
    counts, x, y = np.histogram2d(plane[:, 0], plane[:, 1], BINS)
    axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), cmap=DENSITY, norm=LogNorm())
    if shares.sum() > 0:
        axes.set_title(f"coverage in {shares[-2:].sum() / shares.sum():.0%} of the variance\n(bright: many steps)")


def _scaled(episodes: Episodes) -> np.ndarray:
    """Return observations in standard deviations around their means, [at most SAMPLE, at most MOST_COLUMNS] float64.

    Rows that are not finite are left out; a number that never changes is 0.
    """
    stride = -(-episodes.n_steps // SAMPLE)
    if episodes.parts is None:
        rows = np.asarray(episodes.observations[::stride, :MOST_COLUMNS], np.float64)
    else:
        rows = as_numbers(episodes.parts, episodes.observations[::stride], MOST_COLUMNS).astype(np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    if len(rows) == 0:
        return rows
    std = rows.std(0)
    return (rows - rows.mean(0)) / np.where(std > 0, std, 1)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mark(axes: Axes, value: float, name: str) -> None:
    """Mark a value of the horizontal axis."""
    axes.axvline(value, color=RED, ls="--", lw=1.5, label=f"{name} {value:.4g}")
    axes.legend(fontsize=9)
