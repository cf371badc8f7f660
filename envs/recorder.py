"""An environment wrapper that remembers every step, whoever acts: an agent that learns, or one that plays."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from envs.datasets import DatasetError, Episodes


class Recorded(NamedTuple):
    """One finished episode of T steps."""

    observations: np.ndarray  # [T, observation_dim]
    actions: np.ndarray  # [T, …]
    rewards: np.ndarray  # [T]
    final_observation: np.ndarray
    terminated: bool


class Recorder(gym.Wrapper):
    """Appends each finished episode to ``done``, a list that several environments may share. An unfinished one is
    dropped."""

    def __init__(self, env: gym.Env, done: list[Recorded]):
        super().__init__(env)
        self.done = done
        self._steps: list[tuple[np.ndarray, Any, float]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._steps, self._observation = [], np.asarray(observation, np.float32)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps.append((self._observation, np.array(action), float(reward)))
        self._observation = np.asarray(observation, np.float32)
        if terminated or truncated:
            observations, actions, rewards = (np.asarray(column) for column in zip(*self._steps, strict=True))
            self.done.append(Recorded(observations, actions, rewards, self._observation, terminated))
            self._steps = []
        return observation, reward, terminated, truncated, info


def to_episodes(done: list[Recorded], env: gym.Env, name: str) -> Episodes:
    """What was recorded in environments like ``env``, in the order in which the episodes ended."""
    if not done:
        raise DatasetError(f"{name}: no episode was finished, so there is nothing to record")
    space = env.action_space
    assert isinstance(space, gym.spaces.Box | gym.spaces.Discrete)
    terminated = np.array([episode.terminated for episode in done])
    return Episodes(
        observations=np.concatenate([episode.observations for episode in done]),
        actions=np.concatenate([episode.actions for episode in done]).astype(
            np.int64 if isinstance(space, gym.spaces.Discrete) else np.float32
        ),
        rewards=np.concatenate([episode.rewards for episode in done]).astype(np.float32),
        lengths=np.array([len(episode.rewards) for episode in done]),
        terminated=terminated,
        truncated=~terminated,
        final_observations=np.stack([episode.final_observation for episode in done]),
        action_space=space,
        name=name,
        env_id=env.spec.id if env.spec else None,
    )
