"""Hold what an environment gives against what it says that it gives.

NumPy would make something of nearly anything: a number is spread over a row of three, 0.5 as uint8 is
0, 300 is 44, and state -1 is the last one. What does not fit is an error that names the environment.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from unroll.errors import EnvError


class Misfit(EnvError):
    """Something that does not fit the environment's spaces. Who catches it says which environment, and when."""


def check_reset(result: Any) -> tuple[Any, dict[str, Any]]:
    """Return what a reset gave, which must be (observation, info).

    Raises:
        Misfit: it is something else, as the observation alone.
    """
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return result
    raise Misfit(f"reset() gives {_in_words(result)}, where an observation and a dict are needed")


def check_observation(space: gym.Space, observation: Any) -> None:
    """Raise Misfit unless an observation has the shape of its space, and numbers that the space can hold.

    Bounds are not checked, and neither are spaces of text, graphs and sequences.
    """
    if isinstance(space, gym.spaces.Box):  # first, and fast: this is asked in every step
        if not isinstance(observation, np.ndarray) or observation.dtype != space.dtype:
            _check_numbers(_array(space, observation), np.dtype(space.dtype))
        elif observation.shape != space.shape:
            _array(space, observation)
    elif isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, dict) or not space.spaces.keys() <= observation.keys():
            raise Misfit(f"the observation is {_in_words(observation)}, its space has {', '.join(space)}")
        for key, part in space.items():
            check_observation(part, observation[key])
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(space):
            raise Misfit(f"the observation is {_in_words(observation)}, its space has {len(space)} parts")
        for part, given in zip(space, observation, strict=True):
            check_observation(part, given)
    elif isinstance(space, gym.spaces.Discrete):
        _check_choices(np.asarray(observation), int(space.start), int(space.start + space.n), space)
    elif isinstance(space, gym.spaces.MultiDiscrete):
        values = _array(space, observation)
        _check_choices(values, space.start, space.start + space.nvec, space)
    elif isinstance(space, gym.spaces.MultiBinary):
        _check_numbers(_array(space, observation), np.dtype(space.dtype))


def check_flags(terminated: Any, truncated: Any) -> None:
    """Raise Misfit for flags that are neither true nor false. None stands for false."""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if flag is not None and flag not in (0, 1):
            raise Misfit(f"{name} is {flag}, where true or false is needed")


def _array(space: gym.Space, observation: Any) -> np.ndarray:
    """Return the observation as an array of the space's shape."""
    if isinstance(observation, dict):
        raise Misfit(f"the observation is {_in_words(observation)}, its space says {space.shape}")
    try:
        values = np.asarray(observation)
    except ValueError:  # rows of different lengths
        raise Misfit(f"the observation has rows of different lengths, its space says {space.shape}") from None
    if values.shape != space.shape:
        raise Misfit(f"the observation has the shape {values.shape}, its space says {space.shape}")
    return values


def _check_numbers(values: np.ndarray, dtype: np.dtype) -> None:
    """Raise Misfit where the dtype of the space would make other numbers of these."""
    if values.dtype == dtype:
        return
    if values.dtype.kind not in "fiub":
        raise Misfit(f"the observation holds {values.dtype}, not numbers")
    if dtype.kind == "f":
        return
    with np.errstate(invalid="ignore"):
        lost = values.astype(dtype) != values
    if lost.any():
        raise Misfit(f"the observation holds {values[lost][0]:g}, its space says {dtype}")


def _check_choices(values: np.ndarray, low: Any, high: Any, space: gym.Space) -> None:
    """Raise Misfit for a choice that the space does not have."""
    whole = values.dtype.kind in "iub"
    if not whole or ((values < low) | (values >= high)).any():
        text = " ".join(str(values).split())
        raise Misfit(f"the observation is {text[:100]}{'' if whole else f' ({values.dtype})'}, none of {space}")


def _in_words(value: Any) -> str:
    """Name the kind of a value."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    return f"one {kind}"
