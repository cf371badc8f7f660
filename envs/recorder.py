"""An environment wrapper that remembers every step, whoever acts: an agent that learns, or one that plays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.datasets import DatasetError, Episodes


class Recorder(gym.Wrapper):
    """Keeps finished episodes of flat observations; ``episodes()`` gives them. An episode that was left unfinished is dropped."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._done: list[dict[str, Any]] = []
        self._steps: list[tuple[np.ndarray, Any, float]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._steps, self._observation = [], observation
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps.append((self._observation, np.array(action), float(reward)))
        self._observation = observation
        if terminated or truncated:
            observations, actions, rewards = zip(*self._steps, strict=True)
            self._done.append(
                {
                    "observations": np.asarray(observations, np.float32),
                    "actions": np.asarray(actions),
                    "rewards": np.asarray(rewards, np.float32),
                    "final": np.asarray(observation, np.float32),
                    "terminated": terminated,
                    "truncated": truncated and not terminated,
                }
            )
            self._steps = []
        return observation, reward, terminated, truncated, info

    def episodes(self, name: str) -> Episodes:
        if not self._done:
            raise DatasetError(f"{name}: no episode was finished, so there is nothing to record")
        space = self.action_space
        assert isinstance(space, gym.spaces.Box | gym.spaces.Discrete)
        actions = np.concatenate([episode["actions"] for episode in self._done])
        return Episodes(
            observations=np.concatenate([episode["observations"] for episode in self._done]),
            actions=actions.astype(np.int64 if isinstance(space, gym.spaces.Discrete) else np.float32),
            rewards=np.concatenate([episode["rewards"] for episode in self._done]),
            lengths=np.array([len(episode["rewards"]) for episode in self._done]),
            terminated=np.array([episode["terminated"] for episode in self._done]),
            truncated=np.array([episode["truncated"] for episode in self._done]),
            final_observations=np.stack([episode["final"] for episode in self._done]),
            action_space=space,
            name=name,
            env_id=self.spec.id if self.spec else None,
        )
