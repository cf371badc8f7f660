"""Actions that are disturbed while a dataset is recorded."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class NoisyActions(gym.ActionWrapper):
    """Disturbs what the agent chose; the recording holds what was done."""

    def __init__(self, env: gym.Env, noise: float):
        super().__init__(env)
        self.noise = noise
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # an episode's noise depends on its seed alone
            self._random = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        space = self.env.action_space
        if isinstance(space, gym.spaces.Discrete):
            if self._random.random() >= self.noise:
                return action
            allowed = self._allowed(space)
            return allowed[self._random.integers(len(allowed))]
        assert isinstance(space, gym.spaces.Box)
        error = self._random.normal(scale=self.noise, size=space.shape) * (space.high - space.low) / 2
        return np.clip(action + error, space.low, space.high).astype(np.float32)

    def _allowed(self, space: gym.spaces.Discrete) -> np.ndarray:
        """The actions that the environment does not forbid now."""
        if self.env.has_wrapper_attr("action_masks"):
            return np.flatnonzero(self.env.get_wrapper_attr("action_masks")())
        return np.arange(space.n)
