"""What one reading of all values of a dataset tells, block by block: a dataset may be larger than memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from unroll.envs.datasets.episodes import Episodes

BLOCK = 1 << 25  # bytes that are looked at together
TOLERANCE = 1e-3  # how far an action may lie outside of its box


@dataclasses.dataclass(frozen=True)
class Scan:
    """The statistics and the faults of the values; of a fault (rows that have it, the first of them)."""

    mean: np.ndarray  # of the observations, [observation_dim] float64
    std: np.ndarray
    not_finite: dict[str, tuple[int, int]]  # of observations, actions and rewards, where there are any
    outside: tuple[int, int]  # actions outside of their space
    partly_known: tuple[int, int]  # final observations: of an episode all numbers are known, or none


def scan(episodes: Episodes) -> Scan:
    """What was kept with the episodes, or else what all their values say. Their arrays must fit each other."""
    if episodes.scan is not None:
        return episodes.scan
    with np.errstate(all="ignore"):  # statistics of NaN are NaN; where they are is said
        mean, std = moments(read(episodes.observations))
        faults = {name: _count(_not_finite(getattr(episodes, name))) for name in ("observations", "actions", "rewards")}
        outside = _count(_outside(actions, episodes.action_space) for actions in read(episodes.actions))
        final = episodes.final_observations
        partly = _count(() if final is None else (_partly_known(part) for part in read(final)))
    return Scan(mean, std, {name: fault for name, fault in faults.items() if fault[0]}, outside, partly)


def blocks(n: int, row_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Rows 0 to n, about BLOCK bytes at a time, in a multiple of that many rows."""
    size = max(1, BLOCK // max(1, row_bytes) // multiple) * multiple
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def read(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array that may lie on a disk, some at a time."""
    return (np.asarray(values[rows]) for rows in blocks(len(values), values.nbytes // max(1, len(values))))


def moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis of all parts together, in float64.

    Squares are summed about each part's own mean and merged: Chan, Golub & LeVeque 1979, equation 2.1.
    """
    n, mean, squares = 0, np.zeros(()), np.zeros(())
    for part in parts:
        part = part.astype(np.float64)
        share, away = len(part) / (n + len(part)), part.mean(0) - mean
        squares = squares + ((part - part.mean(0)) ** 2).sum(0) + away**2 * (n * share)
        n, mean = n + len(part), mean + away * share
    return mean, np.sqrt(squares / n)


def _not_finite(values: np.ndarray) -> Iterator[np.ndarray]:
    return (~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in read(values))


def _partly_known(final: np.ndarray) -> np.ndarray:
    return ~(np.isfinite(final).all(axis=1) | np.isnan(final).all(axis=1))


def _outside(actions: np.ndarray, space: gym.spaces.Box | gym.spaces.Discrete) -> np.ndarray:
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray((actions < 0) | (actions >= space.n))
    return np.any((actions < space.low - TOLERANCE) | (actions > space.high + TOLERANCE), axis=1)


def _count(parts: Iterable[np.ndarray]) -> tuple[int, int]:
    """Of rows that are marked: how many, and the first."""
    rows, count, first = 0, 0, 0
    for marked in parts:
        if count == 0 and marked.any():
            first = rows + int(np.argmax(marked))
        rows, count = rows + len(marked), count + int(marked.sum())
    return count, first
