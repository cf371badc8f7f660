"""Rollouts of policies that remember: an on-policy algorithm of Stable-Baselines3 that carries states."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from unroll.agents.common.distributed import all_of, n_ranks, share
from unroll.agents.common.guards import actor_critic_parameters, check_budget, guard_memory
from unroll.errors import TrainingError
from unroll.policies.actor_critic import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from unroll.policies.backbones import State, select_rows
from unroll.policies.masking import check_masks


class RecurrentOnPolicyAlgorithm(OnPolicyAlgorithm):
    """Plays with a policy whose state is carried from step to step and from rollout to rollout.

    Next to Stable-Baselines3's buffer it keeps the states before steps 0, L, 2·L, … of the rollout, L the
    ``sequence_length``, and the action masks of environments that have a method ``action_masks()``. A subclass learns
    from them in ``train``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": RecurrentActorCriticPolicy,
        "CnnPolicy": RecurrentActorCriticCnnPolicy,
        "MultiInputPolicy": RecurrentMultiInputActorCriticPolicy,
    }
    policy: RecurrentActorCriticPolicy
    sequence_length: int | None
    sized_by: tuple[str, ...] = ("n_envs", "n_steps")
    agree_every = 16  # steps after which several processes ask each other whether one was told to stop

    def _setup_model(self) -> None:
        self._check_budget()
        super()._setup_model()
        self._state: State | None = None  # None: the environments begin
        self._states: list[State] = []
        self._action_masks: np.ndarray | None = None  # [n_steps, n_envs, mask_width]
        self._rollout_seconds = 0.0
        if n_ranks() > 1:
            every = self.n_envs * n_ranks()
            self.policy.rows = share(every).start, every
        self._ended: list[dict[str, Any]] = []  # episodes of this process that the others have not heard of
        self.between_updates = True  # False inside of a rollout, and of the update that follows it
        self.interrupted = False  # may be set at any time: an update is left after the current minibatch

    def _check_budget(self) -> None:
        """Raise TrainingError, before anything is allocated, where policy and rollout are more than the device has."""
        shape = getattr(self.observation_space, "shape", None) or (1,)
        row = math.prod(shape) * self.observation_space.dtype.itemsize if self.observation_space.dtype else 1
        rollout = {f"a rollout of n_steps {self.n_steps} × n_envs {self.n_envs}": self.n_steps * self.n_envs * row}
        check_budget(actor_critic_parameters(self.policy_kwargs, self.observation_space), rollout, self.device)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "RecurrentPPO",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environments begin, and with them the memory
            self._state = None
        self.interrupted = False
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    @guard_memory
    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play ``n_rollout_steps`` in every environment; False where a callback ended it. Local names are those of
        Stable-Baselines3, whose callbacks read them."""
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        if self.interrupted:  # maybe in the middle of the update before
            return False
        began = time.perf_counter()
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        self._states, masks = [], []
        masking = env.has_attr("action_masks")
        if self._state is None:
            with torch.no_grad():  # where it is learned, it is so by the episodes that begin in a sequence
                self._state = self.policy.initial_state(env.num_envs)
        callback.on_rollout_start()  # which may save: nothing of this rollout has been drawn yet
        self.between_updates = False
        if self.use_sde:
            self.policy.reset_noise(env.num_envs * n_ranks())

        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs * n_ranks())
            if n_steps % (self.sequence_length or n_rollout_steps) == 0:
                self._states.append(self._state)
            action_masks = None
            if masking:
                allowed = np.stack(env.env_method("action_masks"))
                masks.append(check_masks(allowed, self.action_space, env.num_envs))
                action_masks = torch.from_numpy(masks[-1]).to(self.device)
            check_observations(self._last_obs, self.num_timesteps)
            with torch.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                actions, values, log_probs, self._state = self.policy(
                    obs_tensor, self._state, self._reset(self._last_episode_starts), action_masks=action_masks
                )
            actions = actions.cpu().numpy()
            clipped_actions = self.policy.to_environment(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs * n_ranks()

            last_obs, last_episode_starts = self._last_obs, self._last_episode_starts
            self._last_episode_starts = dones  # here, because a callback may end the learning now
            self._last_obs = new_obs  # type: ignore[assignment]
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            self._bootstrap(rewards, dones, infos)
            rollout_buffer.add(last_obs, actions, rewards, last_episode_starts, values, log_probs)  # type: ignore[arg-type]

        self._action_masks = np.stack(masks) if masking else None
        with torch.no_grad():
            obs_tensor = obs_as_tensor(new_obs, self.device)  # type: ignore[arg-type]
            values = self.policy.predict_values(obs_tensor, self._state, self._reset(dones))
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        if n_ranks() > 1:
            assert self.ep_info_buffer is not None
            self.ep_info_buffer.extend(all_of(self._ended))
            self._ended = []
        self._rollout_seconds = time.perf_counter() - began
        return True

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        if n_ranks() == 1:
            super()._update_info_buffer(infos, dones)
        else:
            self._ended += [info["episode"] for info in infos if "episode" in info]

    def _reset(self, episode_start: np.ndarray) -> torch.Tensor | None:
        """Where the memory is emptied; None: nowhere."""
        if not (self.policy.reset_on_done and episode_start.any()):
            return None
        return torch.as_tensor(episode_start, dtype=torch.bool, device=self.device)

    def _bootstrap(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Add the discounted value of what a truncated episode ended with, seen by the memory of that episode."""
        rows = [i for i in np.flatnonzero(dones) if infos[i].get("TimeLimit.truncated", False)]
        rows = [i for i in rows if infos[i].get("terminal_observation") is not None]
        if not rows:
            return
        last: list[Any] = [infos[i]["terminal_observation"] for i in rows]
        stacked = {k: np.stack([o[k] for o in last]) for k in last[0]} if isinstance(last[0], dict) else np.stack(last)
        with torch.no_grad():
            state = select_rows(self._state, torch.tensor(rows, device=self.device))
            values = self.policy.predict_values(obs_as_tensor(stacked, self.device), state)
        rewards[rows] += self.gamma * values.flatten().cpu().numpy()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """See ``RecurrentActorCriticPolicy.predict``."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_state", "_states", "_action_masks"]


def check_observations(observations: Any, step: int) -> None:
    """Raise TrainingError where an environment gave an observation that is not finite."""
    parts = observations.items() if isinstance(observations, dict) else [("", observations)]
    for key, values in parts:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            finite = np.isfinite(values).reshape(len(values), -1).all(1)
            where = f"{key} of environment {int(np.argmin(finite))}" if key else f"environment {int(np.argmin(finite))}"
            raise TrainingError(f"the observation of {where} is not finite at step {step}")
