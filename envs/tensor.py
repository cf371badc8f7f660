"""Environments that are stepped at once, by tensors that stay on one device."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from unroll.envs.gymnasium_vector import GymnasiumVector
from unroll.envs.spaces import in_words
from unroll.envs.wrappers import PreviousAction
from unroll.errors import EnvError


class TensorEnv(VectorEnv, ABC):
    """N environments as one, for RecurrentPPO's rollouts without a copy to the host.

    This is Gymnasium's VectorEnv with tensors in the place of arrays. Where an episode ends, the next one begins in the
    same step.

    Args:
        num_envs: N.
        observation_space: of one environment.
        action_space: of one environment.
        device: where the tensors of ``reset`` and ``step`` are.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's attribute

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        device: torch.device | str = "cpu",
    ):
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.device = torch.device(device)

    @abstractmethod
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Begin an episode everywhere: observations [N, …], and an empty dict.

        ``seed`` None goes on with the random numbers of before.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Take actions [N, …] and return (observations, rewards, terminated, truncated, info).

        ``observations`` [N, …] are those of the next step: the first ones of an episode where one begins. ``rewards``
        [N] are floats, ``terminated`` and ``truncated`` [N] bool. ``info["final_obs"]`` [N, …] holds what an episode
        that is over showed last; other rows of it are not read, and steps in which no episode ends may be without it.
        Elsewhere the value of the last observation but one stands for the rewards that a truncation cuts off.
        """

    def save_state(self) -> dict[str, Tensor] | None:
        """Return all that the next steps depend on; None where that cannot be had."""
        return None

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``save_state`` returned, in an environment made alike that has been reset once."""
        raise NotImplementedError


class PreviousTensorStep(TensorEnv):
    """A TensorEnv that also shows the action and the reward of the step before, as ``PreviousStep`` does.

    The row is the observation, the action (Discrete: one-hot, with one class more for "none yet") and the reward. An
    episode begins with no action and 0.

    Raises:
        EnvError: the actions are neither Discrete nor a Box.
    """

    def __init__(self, env: TensorEnv, action: bool = True, reward: bool = True):
        self.env = env
        actions = env.single_action_space
        parts = {"observation": env.single_observation_space}
        none: list[Any] = []  # what is shown at an episode's start
        self._classes: int | None = None  # of a Discrete action, as it is shown
        self._action = action
        self._reward = reward
        if action:
            previous = PreviousAction(actions, type(env).__name__)
            if isinstance(previous.space, gym.spaces.Discrete):
                self._classes = int(previous.space.n)
            elif not isinstance(previous.space, gym.spaces.Box):
                raise EnvError(f"{type(env).__name__}: previous_action is for actions that are Discrete or a Box")
            parts["previous_action"] = previous.space
            none.append(flatten(previous.space, previous.none()))
        if reward:
            parts["previous_reward"] = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
            none.append(np.zeros(1))
        super().__init__(env.num_envs, flatten_space(gym.spaces.Dict(parts)), actions, env.device)
        self._dtype = torch.from_numpy(np.zeros(0, self.single_observation_space.dtype)).dtype
        row = torch.as_tensor(np.concatenate(none), dtype=self._dtype, device=self.device)
        self._none = row.expand(self.num_envs, -1)
        self._previous = self._none

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        observations, info = self.env.reset(seed=seed, options=options)
        self._previous = self._none
        return self._row(observations), info

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        actions = torch.as_tensor(actions, device=self.device)
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._previous = self._shown(actions, rewards)
        if "final_obs" in info:
            info = info | {"final_obs": self._row(info["final_obs"])}
        over = terminated | truncated
        self._previous = torch.where(over[:, None], self._none, self._previous)
        return self._row(observations), rewards, terminated, truncated, info

    def _shown(self, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return what is shown of a step, [N, numbers]."""
        parts = []
        if self._classes is not None:
            parts.append(F.one_hot(actions, self._classes))
        elif self._action:
            parts.append(actions.reshape(self.num_envs, -1))
        if self._reward:
            parts.append(rewards[:, None])
        return torch.cat([part.to(self._dtype) for part in parts], 1)

    def _row(self, observations: Tensor) -> Tensor:
        return torch.cat([observations.flatten(1).to(self._dtype), self._previous], 1)

    def save_state(self) -> dict[str, Tensor] | None:
        state = self.env.save_state()
        return None if state is None else {**state, "previous_step": self._previous}

    def load_state(self, state: dict[str, Tensor]) -> None:
        previous = state["previous_step"]
        if previous.shape != self._none.shape:
            raise ValueError(f"previous_step is {tuple(previous.shape)}, not {tuple(self._none.shape)}")
        self.env.load_state({name: value for name, value in state.items() if name != "previous_step"})
        self._previous = previous.to(self.device, self._dtype)


class TensorVector(GymnasiumVector):
    """A TensorEnv as Stable-Baselines3's algorithms take environments.

    Its own ``reset`` and ``step`` copy to the host, for the library's evaluations. RecurrentPPO steps the TensorEnv
    ``env`` itself.

    Raises:
        EnvError: it observes what is no Box, or has action masks, which no rollout on a device asks for.
    """

    env: TensorEnv

    def __init__(self, env: TensorEnv):
        name = type(env).__name__
        space = env.single_observation_space
        if not isinstance(space, gym.spaces.Box):
            raise EnvError(f"{name} observes {in_words(space)}; environments of tensors observe a Box")
        if hasattr(env, "action_masks"):
            raise EnvError(f"{name} has action_masks(), which environments of tensors are not asked for")
        super().__init__(env)

    @torch.inference_mode()
    def reset(self) -> Any:
        # In a rollout the environments are stepped so, and what they made there may not be written into otherwise.
        return super().reset()

    def step_async(self, actions: Any) -> None:
        super().step_async(torch.as_tensor(actions, device=self.env.device))

    @torch.inference_mode()
    def step_wait(self) -> Any:
        return super().step_wait()

    def shows_last(self, said: dict[str, Any]) -> bool:
        return "final_obs" in said

    @property
    def returns(self) -> np.ndarray:
        """The rewards of the episodes that are being played, summed up, float64 [N]."""
        return self._returns

    @property
    def lengths(self) -> np.ndarray:
        """The steps of the episodes that are being played, int64 [N]."""
        return self._lengths

    def set_progress(self, returns: np.ndarray, lengths: np.ndarray) -> None:
        """Set ``returns`` and ``lengths`` after steps of the TensorEnv itself."""
        self._returns = returns
        self._lengths = lengths

    @property
    def seconds(self) -> float:
        """The time since all environments were reset, as Monitor has it in the record of an episode."""
        return time.monotonic() - self._began

    def save_state(self) -> dict[str, Any] | None:
        """Return what the next steps and the next episodes' records depend on; None where it cannot be saved."""
        state = self.env.save_state()
        if state is None:
            return None
        return {"env": state, "returns": self._returns, "lengths": self._lengths}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``save_state`` returned."""
        for name in ("returns", "lengths"):
            if state[name].shape != (self.num_envs,):
                raise ValueError(f"{name} of {state[name].shape} were saved where {(self.num_envs,)} belongs")
        self.env.load_state(state["env"])
        self.set_progress(state["returns"], state["lengths"])


def tensor_vector(env: VecEnv | None) -> TensorVector | None:
    """Return the vector of tensors below the wrappers of ``env``; None where it is stepped by arrays."""
    if env is not None and isinstance(env.unwrapped, TensorVector):
        return env.unwrapped
    return None
