"""Statistics over a handful of seeds, as rliable has them (Agarwal et al. 2021, arXiv:2108.13264).

Scores are a list with one array for each task: those of its runs, one for each seed. Tasks may differ in how many.
Intervals are percentiles of a stratified bootstrap: runs are drawn again, with replacement, within each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Scores = Sequence[np.ndarray]
Interval = tuple[float, float]

FEWEST = 3  # seeds of a task below which no interval is given
SAMPLES = 20_000
COVERED = 0.95


def iqm(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half of the last axis: a quarter, rounded down, is left out at either end."""
    cut = values.shape[-1] // 4
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(-1)


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(-1)


def aggregate(statistic: Callable[[np.ndarray], np.ndarray], scores: Scores) -> tuple[float, Interval | None]:
    """``statistic`` of all runs of all tasks, and its interval; None where a task has too few runs for one."""
    value = float(statistic(np.concatenate(scores)))
    if min(map(len, scores)) < FEWEST:
        return value, None
    drawn = np.concatenate([_redraw(task, seed) for seed, task in enumerate(scores)], axis=-1)
    return value, _middle(statistic(drawn))


def probability_of_improvement(scores: Scores, reference: Scores) -> tuple[float, Interval | None]:
    """How likely a run has a higher score than a run of the reference on the same task, ties counted half (Mann and
    Whitney's U over the number of pairs), mean over tasks; and its interval."""
    pairs = list(zip(scores, reference, strict=True))
    value = float(np.mean([_ahead(a, b) for a, b in pairs]))
    if min(len(task) for pair in pairs for task in pair) < FEWEST:
        return value, None
    drawn = [_ahead(_redraw(a, 2 * i), _redraw(b, 2 * i + 1)) for i, (a, b) in enumerate(pairs)]
    return value, _middle(np.mean(drawn, axis=0))


def paired_difference(scores: Scores, reference: Scores) -> tuple[float, Interval | None]:
    """Mean over all runs of the difference to the reference's run of the same task and seed, which saw the same
    evaluation episodes; and its interval."""
    return aggregate(mean, [a - b for a, b in zip(scores, reference, strict=True)])


def profile(scores: Scores, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The share of runs above each threshold [N], and its band [N, 2]; None where a task has too few runs for one."""
    runs = np.concatenate(scores)
    share = (runs > thresholds[:, None]).mean(-1)
    if min(map(len, scores)) < FEWEST:
        return share, None
    drawn = np.concatenate([_redraw(task, seed, 2000) for seed, task in enumerate(scores)], axis=-1)
    return share, np.array([_middle((drawn > threshold).mean(-1)) for threshold in thresholds])


def _redraw(runs: np.ndarray, seed: int, samples: int = SAMPLES) -> np.ndarray:
    """[samples, runs]; the same every time."""
    return runs[np.random.default_rng(seed).integers(len(runs), size=(samples, len(runs)))]


def _ahead(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of pairs in which a is ahead of b, over the last axes."""
    a, b = a[..., :, None], b[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean((-2, -1))


def _middle(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)
