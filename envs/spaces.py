"""Gymnasium spaces in words."""

from __future__ import annotations

import gymnasium as gym


def in_words(space: gym.Space) -> str:
    """Describe a space on one line. Gymnasium's text prints the bounds of a Box as arrays."""
    if isinstance(space, gym.spaces.Box):
        if space.shape in ((), (1,)):
            return "1 number"
        return f"{' × '.join(map(str, space.shape))} numbers"
    if isinstance(space, gym.spaces.Dict):
        return ", ".join(f"{key}: {in_words(part)}" for key, part in space.items())
    return " ".join(str(space).split())
