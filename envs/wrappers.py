"""Environment wrappers that put into the observation all that a policy acts on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class ReturnToGo(gym.Wrapper):
    """Shows a decision policy what its training sequences hold: a Dict of ``SEQUENCE_KEYS``.

    ``observation`` (D,), ``previous_action`` (zeros, or for discrete actions the class ``n``, at an episode's start),
    ``return_to_go`` (1,): the return asked for minus the rewards so far, and ``timestep`` (1,).
    ``reset(options={"target_return": …})`` asks for another return.
    """

    def __init__(self, env: gym.Env, target_return: float = 0.0):
        super().__init__(env)
        self.target_return = target_return
        self._discrete = isinstance(env.action_space, gym.spaces.Discrete)
        action = env.action_space
        if isinstance(action, gym.spaces.Discrete):
            action = gym.spaces.Discrete(int(action.n) + 1)
            self._no_action: Any = np.int64(action.n - 1)
        else:
            self._no_action = np.zeros(action.shape, np.float32)
        unbounded = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = gym.spaces.Dict(
            observation=env.observation_space,
            previous_action=action,
            return_to_go=unbounded,
            timestep=gym.spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        options = dict(options or {})
        self._return_to_go = float(options.pop("target_return", self.target_return))
        self._timestep, self._previous_action = 0, self._no_action
        observation, info = self.env.reset(seed=seed, options=options or None)
        return self._dict(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._return_to_go -= float(reward)
        self._timestep += 1
        self._previous_action = np.int64(action) if self._discrete else np.asarray(action, np.float32)
        return self._dict(observation), reward, terminated, truncated, info

    def _dict(self, observation: Any) -> dict[str, Any]:
        return {
            "observation": observation,
            "previous_action": self._previous_action,
            "return_to_go": np.array([self._return_to_go], np.float32),
            "timestep": np.array([self._timestep], np.int64),
        }
