"""Compute statistics and faults of a dataset's values, block by block.

The dataset may be larger than RAM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import gymnasium as gym
import numpy as np

BLOCK = 1 << 25  # bytes that are looked at together
TOLERANCE = 1e-3  # how far an action may lie outside of its box, in units of half the space between the bounds


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The moments of the observations, and the faults of all values.

    A fault is (number of rows that have it, the first of them).
    """

    mean: np.ndarray  # of the observations' numbers, [D] float64; the pixels of images are none of them
    std: np.ndarray
    not_finite: dict[str, tuple[int, int]]  # by the names of the arrays that have this fault
    outside: tuple[int, int]  # actions outside of their space
    partly_known: tuple[int, int]  # final observations that are NaN in some but not all numbers
    largest_reward: float  # without its sign


def find_statistics(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    final_observations: np.ndarray | None,
    action_space: gym.spaces.Box | gym.spaces.Discrete,
    numbers_of: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> Statistics:
    """Read all values once. The arrays must fit each other; see Episodes for their shapes.

    ``numbers_of`` takes the numbers out of rows of observations that are bytes.
    """

    def seen(rows: np.ndarray) -> Iterator[np.ndarray]:
        """Iterate over the numbers in rows of observations, a block at a time."""
        return map(numbers_of, read(rows))

    # The moments of NaN are NaN without a warning; `not_finite` says where they are.
    with np.errstate(all="ignore"):
        mean, std = moments(seen(observations))

        not_finite = {}
        arrays = {"observations": seen(observations), "actions": read(actions), "rewards": read(rewards)}
        for name, blocks_of_values in arrays.items():
            fault = _count(map(_not_finite, blocks_of_values))
            if fault[0]:
                not_finite[name] = fault

        largest_reward = max((float(np.abs(part).max(initial=0)) for part in read(rewards)), default=0.0)
        outside = find_outside(actions, action_space)
        partly_known = (0, 0)
        if final_observations is not None:
            partly_known = _count(map(_partly_known, seen(final_observations)))

    return Statistics(mean, std, not_finite, outside, partly_known, largest_reward)


def blocks(n: int, row_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Cut rows 0 to n into slices of about BLOCK bytes, each a multiple of `multiple` rows long."""
    size = max(1, BLOCK // max(1, row_bytes) // multiple) * multiple
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def read(values: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over the rows of an array that may lie on a disk, a block at a time."""
    row_bytes = values.nbytes // max(1, len(values))
    return (np.asarray(values[rows]) for rows in blocks(len(values), row_bytes))


def moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the first axis of all parts together, in float64.

    Squares are summed about each part's own mean and merged: Chan, Golub & LeVeque 1979, equation
    2.1.
    """
    n = 0
    mean = np.zeros(())
    squares = np.zeros(())
    for part in parts:
        part = part.astype(np.float64)
        part_mean = part.mean(0)
        share = len(part) / (n + len(part))
        distance = part_mean - mean

        # The last term is what the distance between the two means adds.
        squares = squares + ((part - part_mean) ** 2).sum(0) + distance**2 * (n * share)
        mean = mean + distance * share
        n += len(part)
    return mean, np.sqrt(squares / n)


def _not_finite(values: np.ndarray) -> np.ndarray:
    """Mark the rows that hold NaN or an infinity, [N] bool."""
    return ~np.isfinite(values).reshape(len(values), -1).all(axis=1)


def _partly_known(final: np.ndarray) -> np.ndarray:
    """Mark the final observations that are neither known nor unknown (all NaN), [N] bool."""
    return ~(np.isfinite(final).all(axis=1) | np.isnan(final).all(axis=1))


def _outside(actions: np.ndarray, space: gym.spaces.Box | gym.spaces.Discrete) -> np.ndarray:
    """Mark the actions that are not in their space, [N] bool."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray((actions < 0) | (actions >= space.n))
    low = space.low.astype(np.float64)
    high = space.high.astype(np.float64)
    # An action at a bound may have been rounded to float32.
    rounding = np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    room = TOLERANCE * (high - low) / 2 + rounding
    return np.any((actions < low - room) | (actions > high + room), axis=1)


def find_outside(actions: np.ndarray, space: gym.spaces.Box | gym.spaces.Discrete) -> tuple[int, int]:
    """Count the actions that are not in their space, and find the first of them."""
    return _count(_outside(part, space) for part in read(actions))


def _count(parts: Iterable[np.ndarray]) -> tuple[int, int]:
    """Count the marked rows of all parts, and find the first of them."""
    rows = 0
    count = 0
    first = 0
    for marked in parts:
        if count == 0 and marked.any():
            first = rows + int(np.argmax(marked))
        rows += len(marked)
        count += int(marked.sum())
    return count, first
