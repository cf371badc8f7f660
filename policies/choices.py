"""Discrete choices: a policy counts them from 0, an environment from the ``start`` of its space."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def first_choice(space: spaces.Space) -> np.ndarray | None:
    """The ``start`` of a Discrete or MultiDiscrete; None where a policy counts as the environment does."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return np.asarray(space.start)
    return None


def as_counted_by_policy(values: Tensor | dict[str, Tensor], space: spaces.Space) -> Tensor | dict[str, Tensor]:
    """Observations [B, …] with choices that begin at 0.

    Stable-Baselines3 makes one-hot rows of the numbers as they are.
    """
    if isinstance(values, dict):
        assert isinstance(space, spaces.Dict)
        return {key: as_counted_by_policy(part, space[key]) for key, part in values.items()}  # type: ignore[misc]
    start = first_choice(space)
    if start is None:
        return values
    return values - torch.as_tensor(start, device=values.device)
