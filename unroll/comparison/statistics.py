"""Statistics over a handful of seeds, following rliable (Agarwal et al. 2021, arXiv:2108.13264).

Scores are a list with one array for each task, which holds one score for each seed. Tasks may have different numbers
of seeds. Intervals are percentiles of a stratified bootstrap: within each task, runs are drawn again with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Scores = Sequence[np.ndarray]
Interval = tuple[float, float]

FEWEST = 3  # a task with fewer seeds than this gets no interval
SAMPLES = 20_000  # bootstrap samples of an interval
PROFILE_SAMPLES = 2000  # a profile has an interval at each of its thresholds
COVERED = 0.95
QUANTILES = ((1 - COVERED) / 2, (1 + COVERED) / 2)


def iqm(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the interquartile mean over the last axis.

    That is the mean of the middle half: a quarter of the values, rounded down, is left out at either end. With
    ``weights`` [N], whose sum is 1, as much of the weight is left out, which may cut a value in part.
    """
    n = values.shape[-1]
    cut = n // 4
    if weights is None:
        return np.sort(values, axis=-1)[..., cut : n - cut].mean(-1)
    order = np.argsort(values, axis=-1)
    ends = np.cumsum(n * weights[order], axis=-1)
    kept = np.diff(np.clip(ends, cut, n - cut), prepend=cut)
    return (np.take_along_axis(values, order, -1) * kept).sum(-1) / (n - 2 * cut)


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean over the last axis."""
    return np.average(values, axis=-1, weights=weights)


def aggregate(statistic: Callable[..., np.ndarray], scores: Scores) -> tuple[float, Interval | None]:
    """Return ``statistic`` over all runs of all tasks, and its interval.

    Every task has the same weight, and every run of it an equal part: a backbone that lacks runs of an easy task is no
    worse for that. The interval is None where a task has too few runs.
    """
    weights = None
    if len({len(task) for task in scores}) > 1:
        weights = np.concatenate([np.full(len(task), 1 / len(task) / len(scores)) for task in scores])
    value = float(statistic(np.concatenate(scores), weights))
    if fewest(scores) < FEWEST:
        return value, None

    # The statistic of each sample, which has as many runs of each task as there are.
    return value, _interval(statistic(_redraw_all(scores, SAMPLES), weights))


def probability_of_improvement(scores: Scores, reference: Scores) -> tuple[float, Interval | None]:
    """Estimate how likely a run scores higher than a run of the reference on the same task.

    Within a task that is Mann and Whitney's U over the number of pairs, so that a tie counts half. The result is the
    mean over tasks, and its interval.
    """
    pairs = list(zip(scores, reference, strict=True))
    value = float(np.mean([_share_ahead(own, other) for own, other in pairs]))
    if min(fewest(scores), fewest(reference)) < FEWEST:
        return value, None

    # Every array is drawn with a seed of its own: the two sides of a pair must be independent.
    drawn = []
    for task, (own, other) in enumerate(pairs):
        drawn.append(_share_ahead(_redraw(own, 2 * task), _redraw(other, 2 * task + 1)))
    return value, _interval(np.mean(drawn, axis=0))


def paired_difference(scores: Scores, reference: Scores) -> tuple[float, Interval | None]:
    """Return the mean difference to the reference, and its interval.

    Run i of a task is compared with run i of the reference: both have the same seed, and so the same evaluation
    episodes.
    """
    differences = [own - other for own, other in zip(scores, reference, strict=True)]
    return aggregate(mean, differences)


def profile(scores: Scores, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the share of runs above each threshold [N], and its band [N, 2].

    The band is None where a task has too few runs.
    """
    runs = np.concatenate(scores)
    share = (runs > thresholds[:, None]).mean(-1)
    if fewest(scores) < FEWEST:
        return share, None

    # An interval at every threshold by itself.
    drawn = _redraw_all(scores, PROFILE_SAMPLES)
    return share, np.array([_interval((drawn > threshold).mean(-1)) for threshold in thresholds])


def fewest(scores: Scores) -> int:
    """Return the number of runs of the task that has the fewest."""
    return min(len(task) for task in scores)


def _redraw_all(scores: Scores, samples: int) -> np.ndarray:
    """Draw the runs of every task again: [samples, runs of all tasks]."""
    # With a seed of its own a task is drawn independently of the others.
    drawn = [_redraw(task, seed, samples) for seed, task in enumerate(scores)]
    return np.concatenate(drawn, axis=-1)


def _redraw(runs: np.ndarray, seed: int, samples: int = SAMPLES) -> np.ndarray:
    """Draw the runs of one task again with replacement: [samples, runs]. The same seed gives the same samples."""
    indices = np.random.default_rng(seed).integers(len(runs), size=(samples, len(runs)))
    return runs[indices]


def _share_ahead(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the share of pairs in which ``own`` is ahead of ``other``, over the last axis of each."""
    # Every run against every run of the other: [..., own runs, other runs].
    rows = own[..., :, None]
    columns = other[..., None, :]
    wins = (rows > columns) + 0.5 * (rows == columns)
    return wins.mean((-2, -1))


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, QUANTILES)
    return float(low), float(high)
