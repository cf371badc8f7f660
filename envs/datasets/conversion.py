"""Convert recorded values of any space to flat float32 rows in the layout of ``make_env``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.order import kept
from unroll.envs.datasets.statistics import read
from unroll.envs.datasets.store import machine_memory

MAX_DISCRETE = 1 << 16  # choices of a discrete space: more are refused
FLOAT32_MAX = float(np.finfo(np.float32).max)
LEVELS = 1000  # into which float32 should divide the range of a column
MOST_REMARKS = 5


def flatten(space: gym.Space, values: Any, outermost: bool = True) -> np.ndarray:
    """Convert T values of `space` (arrays [T, …], dicts or tuples of such) to [T, width] float32.

    A goal environment's dict is observation ⊕ desired_goal; other dicts are in the space's order
    (see order.py). Discrete values become one-hot, as in Gymnasium's own flattening.

    Raises:
        ValueError: values that are not in their space, or a space of another kind.
    """
    return np.concatenate([_rows(part, given) for part, given in leaves(space, values, outermost)], axis=1)


def leaves(space: gym.Space, values: Any, outermost: bool = True) -> Iterator[tuple[gym.Space, Any]]:
    """Iterate over the parts of a space that have none themselves, each with its values, in order."""
    if isinstance(space, gym.spaces.Dict):
        for key in kept(space.spaces, outermost):
            yield from leaves(space[key], values[key], False)
    elif isinstance(space, gym.spaces.Tuple):
        for part, given in zip(space.spaces, values, strict=True):
            yield from leaves(part, given, False)
    else:
        yield space, values


def leaf_spaces(space: gym.Space, outermost: bool = True) -> list[gym.Space]:
    """List the parts of a space that have none themselves, in order."""
    inner: list[gym.Space] = []
    if isinstance(space, gym.spaces.Dict):
        for key in kept(space.spaces, outermost):
            inner += leaf_spaces(space[key], False)
    elif isinstance(space, gym.spaces.Tuple):
        for part in space.spaces:
            inner += leaf_spaces(part, False)
    else:
        inner.append(space)
    return inner


def _rows(space: gym.Space, values: Any) -> np.ndarray:
    """Convert T values of a space without parts to [T, width] float32."""
    if isinstance(space, gym.spaces.Discrete):
        return _one_hot(space, np.asarray(values).reshape(-1))
    if isinstance(space, gym.spaces.MultiDiscrete):
        values = np.asarray(values)
        if values.shape[1:] != space.shape:
            raise ValueError(f"observations are {values.shape[1:]}, their space says {space.shape}")
        columns = zip(space.nvec.flat, space.start.flat, values.reshape(len(values), -1).T, strict=True)
        parts = [_one_hot(gym.spaces.Discrete(n, start=start), column) for n, start, column in columns]
        return np.concatenate(parts, axis=1)
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
        values = np.asarray(values)
        if values.shape[1:] != space.shape:
            raise ValueError(f"observations are {values.shape[1:]}, their space says {space.shape}")
        return as_float32(values.reshape(len(values), int(np.prod(space.shape))))
    raise ValueError(f"observations of {type(space).__name__} cannot be made flat")


def _one_hot(space: gym.spaces.Discrete, values: np.ndarray) -> np.ndarray:
    """Convert [T] choices to [T, n]."""
    choices = values - space.start
    if ((choices < 0) | (choices >= space.n)).any():
        raise ValueError(f"a discrete observation lies outside of {space}")
    if 4 * len(choices) * int(space.n) > machine_memory():
        raise ValueError(f"{len(choices):,} observations of {space} are more than this machine's memory")
    rows = np.zeros((len(choices), int(space.n)), np.float32)
    rows[np.arange(len(choices)), choices] = 1
    return rows


def as_float32(values: np.ndarray) -> np.ndarray:
    """Cast numbers to float32. A float64 that is too large becomes infinite.

    Raises:
        ValueError: these are not real numbers.
    """
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{values.dtype} where numbers are wanted")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def flat_box(space: gym.spaces.Box) -> gym.spaces.Box:
    """Return the box of actions as one row, of float32."""
    return gym.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=np.float32)


def can_be_scaled(space: gym.spaces.Box) -> bool:
    """Say whether float32 holds the middle and the width of a box, from which actions are scaled."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(space.high - space.low).all() and np.isfinite(space.high + space.low).all())


class Precision:
    """Watches the columns of an array while it is converted, for what float32 cannot hold.

    A time in seconds since 1970 is the usual case: float32 knows it to 128 seconds.
    """

    def __init__(self, name: str):
        self.name = name
        self._low: np.ndarray | None = None  # of each column
        self._high: np.ndarray | None = None

    def see(self, space: gym.Space | None, values: Any) -> None:
        """Look at T values before they are converted: of `space`, or rows of numbers where it is None."""
        lows = []
        highs = []
        parts = [(None, values)] if space is None else leaves(space, values)
        for part, given in parts:
            if part is not None and not isinstance(part, gym.spaces.Box):
                zeros = np.zeros(gym.spaces.flatdim(part))
                low = high = zeros
            else:
                flat = np.asarray(given).reshape(len(given), -1)
                low = np.fmin.reduce(flat, axis=0).astype(np.float64)
                high = np.fmax.reduce(flat, axis=0).astype(np.float64)
            lows.append(low)
            highs.append(high)
        low = np.concatenate(lows)
        high = np.concatenate(highs)
        self._low = low if self._low is None else np.fmin(self._low, low)
        self._high = high if self._high is None else np.fmax(self._high, high)

    def remarks(self) -> list[str]:
        """List the columns of which float32 loses more than a thousandth of their range."""
        if self._low is None or self._high is None:
            return []
        with np.errstate(all="ignore"):
            largest = np.maximum(abs(self._low), abs(self._high))
            span = self._high - self._low
            step = np.spacing(largest.astype(np.float32)).astype(np.float64)
            too_large = np.isfinite(largest) & (largest > FLOAT32_MAX)
            lost = np.isfinite(step) & (span > 0) & (step > span / LEVELS)

        found = []
        for i in np.flatnonzero(too_large | lost):
            column = self.name if len(span) == 1 else f"column {i} of {self.name}"
            if too_large[i]:
                found.append(f"{column} reaches {largest[i]:.3g}, float32 holds up to {FLOAT32_MAX:.2g}")
            else:
                limits = f"{self._low[i]:.10g} to {self._high[i]:.10g}"
                found.append(
                    f"{column} goes from {limits}, where float32 tells apart steps of {step[i]:.3g} alone: subtract an "
                    "offset before recording"
                )
        if len(found) > MOST_REMARKS:
            found[MOST_REMARKS:] = [f"so do {len(found) - MOST_REMARKS} more columns of {self.name}"]
        return found


def box_of(actions: np.ndarray) -> gym.spaces.Box:
    """Choose a box for actions [N, A] that no environment describes: ±1, or else their range."""
    lows = []
    highs = []
    for part in read(actions):
        finite = np.where(np.isfinite(part), part, 0)
        lows.append(finite.min(0))
        highs.append(finite.max(0))
    low = np.min(lows, axis=0)
    high = np.max(highs, axis=0)

    if max(abs(low).max(initial=0), abs(high).max(initial=0)) <= 1 + 1e-6:
        return gym.spaces.Box(-1, 1, actions.shape[1:], np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)
