"""What is given to a policy that acts, held against the number of environments that it is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from unroll.policies.backbones import map_state


def beginnings(episode_start: Any, n_envs: int) -> np.ndarray:
    """Return which environments begin an episode, [n_envs] bool; None means that none does.

    Raises:
        ValueError: ``episode_start`` is of another number of environments.
    """
    if episode_start is None:
        return np.zeros(n_envs, bool)
    begins = np.atleast_1d(np.asarray(episode_start, bool))
    if begins.shape != (n_envs,):
        given = f"of {len(begins)} environments" if begins.ndim == 1 else f"of shape {begins.shape}"
        raise ValueError(f"episode_start is {given}, the observation of {n_envs}")
    return begins


def check_memory(state: Any, n_envs: int) -> None:
    """Raise ValueError unless this can be the state of so many environments."""
    try:
        map_state(lambda part: _check_rows(part, n_envs), state)
    except TypeError as error:
        raise ValueError(f"{error}: it is None at first, and then what predict has returned") from None


def _check_rows(part: Tensor, n_envs: int) -> Tensor:
    if len(part) != n_envs:
        raise ValueError(f"the state is of {len(part)} environments, the observation of {n_envs}")
    return part


def check_finite_inputs(inputs: dict[str, Tensor]) -> None:
    """Raise ValueError where what a policy is shown is not finite."""
    for key, value in inputs.items():
        rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"{key} of environment {rows[0]} is not finite, so that no action can be chosen")
