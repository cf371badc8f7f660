"""Convert recorded values of any space to flat float32 rows in the layout of ``make_env``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.statistics import read
from unroll.envs.datasets.store import machine_memory

MAX_DISCRETE = 1 << 16  # choices of a discrete space: more are refused
GOAL = ("observation", "desired_goal", "achieved_goal")  # the entries of a goal environment


def shown_keys(space: gym.spaces.Dict) -> tuple[str, ...]:
    """Return the entries of a Dict observation that make up its row, in the row's order.

    Of a goal environment (Gymnasium-Robotics) they are observation and desired_goal: the goal that
    was achieved is part of what is observed. A Dict with any other entry is no such environment and
    is shown whole, in the space's order.
    """
    keys = tuple(space.spaces)
    if {"observation", "desired_goal"} <= set(keys) <= set(GOAL):
        return GOAL[:2]
    return keys


def flatten(space: gym.Space, values: Any) -> np.ndarray:
    """Convert T values of `space` (arrays [T, …], dicts or tuples of such) to [T, width] float32.

    The outermost dict has the entries of `shown_keys`; dicts within it have all of theirs, in the
    space's order, which is sorted. Discrete values become one-hot, as in Gymnasium's own flattening.

    Raises:
        ValueError: values that are not in their space, or a space of another kind.
    """
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_flatten(space[key], values[key]) for key in shown_keys(space)], axis=1)
    return _flatten(space, values)


def _flatten(space: gym.Space, values: Any) -> np.ndarray:
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_flatten(part, values[key]) for key, part in space.items()], axis=1)
    if isinstance(space, gym.spaces.Tuple):
        return np.concatenate([_flatten(s, v) for s, v in zip(space.spaces, values, strict=True)], axis=1)
    if isinstance(space, gym.spaces.Discrete):
        return _one_hot(space, np.asarray(values).reshape(-1))
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
