"""Observations and actions of any space as flat rows of float32, laid out as ``make_env`` lays them out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.statistics import read
from unroll.envs.datasets.store import machine_memory

MAX_DISCRETE = 1 << 16


def flatten(space: gym.Space, values: Any) -> np.ndarray:
    """T values of ``space`` (arrays [T, …], dicts or tuples of such) as [T, width] float32, laid out as by make_env.

    A goal environment's dict is observation ⊕ desired_goal; other dicts are in the space's order, which is sorted.
    Discrete values become one-hot, as in Gymnasium's own flattening. Raises ValueError for other spaces.
    """
    if isinstance(space, gym.spaces.Dict):
        goal = {"observation", "desired_goal"} <= set(space.spaces)
        keys = ("observation", "desired_goal") if goal else tuple(space.spaces)
        return np.concatenate([flatten(space[key], values[key]) for key in keys], axis=1)
    if isinstance(space, gym.spaces.Tuple):
        return np.concatenate([flatten(s, v) for s, v in zip(space.spaces, values, strict=True)], axis=1)
    if isinstance(space, gym.spaces.Discrete):
        rows = np.asarray(values).reshape(-1) - space.start
        if ((rows < 0) | (rows >= space.n)).any():
            raise ValueError(f"a discrete observation lies outside of {space}")
        if 4 * len(rows) * int(space.n) > machine_memory():
            raise ValueError(f"{len(rows):,} observations of {space} are more than this machine's memory")
        one_hot = np.zeros((len(rows), int(space.n)), np.float32)
        one_hot[np.arange(len(rows)), rows] = 1
        return one_hot
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
        values = np.asarray(values)
        if values.shape[1:] != space.shape:
            raise ValueError(f"observations are {values.shape[1:]}, their space says {space.shape}")
        return as_float32(values.reshape(len(values), int(np.prod(space.shape))))
    raise ValueError(f"observations of {type(space).__name__} cannot be made flat")


def as_float32(values: np.ndarray) -> np.ndarray:
    """A cast in which a float64 too large for float32 becomes infinite, to be found among the non-finite values.

    Raises:
        ValueError: these are not real numbers.
    """
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{values.dtype} where numbers are wanted")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def box_of(actions: np.ndarray) -> gym.spaces.Box:
    """The box for actions [N, A] that no environment describes: ±1 if they fit, else their own range."""
    finite = (np.where(np.isfinite(part), part, 0) for part in read(actions))
    lows, highs = zip(*((part.min(0), part.max(0)) for part in finite), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    if max(abs(low).max(initial=0), abs(high).max(initial=0)) <= 1 + 1e-6:
        return gym.spaces.Box(-1, 1, actions.shape[1:], np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)
