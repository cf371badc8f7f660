"""Gymnasium spaces in words."""

from __future__ import annotations

import gymnasium as gym

from unroll.envs.datasets.images import is_text


def in_words(space: gym.Space) -> str:
    """Describe a space on one line. Gymnasium's text prints the bounds of a Box as arrays."""
    if isinstance(space, gym.spaces.Box):
        if space.shape in ((), (1,)):
            return "1 number"
        return f"{' × '.join(map(str, space.shape))} numbers"
    if is_text(space):
        return "text"
    if isinstance(space, gym.spaces.Dict):
        return ", ".join(f"{key}: {in_words(part)}" for key, part in space.items())
    return " ".join(str(space).split())


def is_simple(space: gym.Space) -> bool:
    """Say whether Stable-Baselines3 has a network for observations of this space, or for this part of a Dict."""
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec.ndim == 1
    return isinstance(space, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiBinary)
