"""From a PPOConfig to RecurrentPPO in its environments, and back from a checkpoint."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from unroll.agents import RecurrentPPO
from unroll.agents.common.callbacks import WholeUpdates
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint
from unroll.agents.common.distributed import check_shares, n_ranks, share, share_statistics
from unroll.agents.common.machine import not_as_made
from unroll.agents.common.restoring import check_size, of_checkpoint
from unroll.agents.decision.update import check_device
from unroll.agents.evaluation.player import Player, ppo_player
from unroll.agents.ppo.checkpoint import pack_ppo, read_ppo, restore_ppo, resume_ppo, write_ppo
from unroll.agents.ppo.config import PPOConfig
from unroll.configs.loading import plain_config, read_config
from unroll.envs import make_vec_env
from unroll.envs.make import make_env
from unroll.envs.spaces import in_words
from unroll.errors import CheckpointError, EnvError, UserError, one_line
from unroll.policies.backbones import count_parameters

NOT_SAVABLE = "cannot be saved, so every environment begins a new episode"


class PPOJob:
    """See ``unroll.agents.algorithm.Job``. A run that goes on does so in the middle of its episodes, where its environments can be
    saved (see envs/state.py), and with new ones elsewhere."""

    unit = "step"
    headlines = [  # noqa: RUF012
        "eval/normalized_score",
        "eval/return_mean",
        "eval/return_mean_without_memory",
        "rollout/ep_rew_mean",
        "perf/train_tokens_per_s",
        "perf/step_latency_us",
        "perf/parameters",
        "perf/peak_memory_mb",
    ]

    def __init__(self, config: PPOConfig, tell: Callable[[str], Any]):
        self.config, self.name = config, config.env
        if config.resume and checkpoints(config.run_dir or ""):
            self.agent = self._resumed(tell)
        else:
            self.agent = make_ppo(config, tell)
        self._whole = WholeUpdates(self._pack, lambda packed: resume_ppo(self.agent, "", *packed))
        self.callbacks: list[BaseCallback] = [self._whole]
        self.player()  # says now what would not fit
        self._begin = time.monotonic(), self.agent.num_timesteps

    def _resumed(self, tell: Callable[[str], Any]) -> RecurrentPPO:
        path = latest_checkpoint(self.config.run_dir or "")
        tensors, state = read_ppo(path)
        # where episodes begin anew, not the run's first seed again: it would bring the first episodes and draws again
        agent = make_ppo(self.config, tell, seed=self.config.seed + int(state["num_timesteps"]))
        same = resume_ppo(agent, path, tensors, state)
        tell(f"goes on at step {agent.num_timesteps}" + ("" if same else f"; {self.name} {NOT_SAVABLE}"))
        note = not_as_made(state) if same else None
        if note:
            tell(note)
        return agent

    def _pack(self) -> Any:
        return pack_ppo(self.agent, plain_config(self.config))

    def describe(self) -> str:
        env = self.agent.env
        assert env is not None
        observed, actions = in_words(env.unwrapped.observation_space), in_words(env.action_space)
        return f"{self.config.n_envs} × {self.name}: observes {observed}, takes actions of {actions}"

    def progress(self) -> str:
        begin, steps = self._begin
        rate = f"{(self.agent.num_timesteps - steps) / (time.monotonic() - begin):.0f} steps/s"
        returns = [episode["r"] for episode in self.agent.ep_info_buffer or []]
        return f"return {np.mean(returns):.4g}  {rate}" if returns else rate

    def player(self) -> Player:
        return player_of(self.agent, self.config, self.config.evaluation.ablation)

    def save(self, path: Path) -> None:
        write_ppo(path, *self._whole.packed)


def load_ppo(checkpoint: Path, device: Literal["auto", "cpu", "cuda"]) -> tuple[RecurrentPPO, PPOConfig]:
    """The agent of a checkpoint, in one environment, and the config that it was trained by.

    Raises:
        CheckpointError: it is damaged, of another agent or version, or its config names what is not here.
    """
    tensors, state = read_ppo(checkpoint)
    config = read_config(state["config"], f"{checkpoint}/state.json")
    if not isinstance(config, PPOConfig):
        raise CheckpointError(f"{checkpoint}: its config is not one of agent ppo")
    config.n_envs, config.batch_size, config.device = 1, None, device
    with of_checkpoint(checkpoint):
        check_size(tensors, smallest_policy(config))
        agent = make_ppo(config, lambda _: None)
    restore_ppo(agent, checkpoint, tensors, state)
    return agent, config


def smallest_policy(config: PPOConfig) -> int:
    """The parameters that the policy of a config has at least."""
    backbone = config.backbone
    return count_parameters(backbone.name, backbone.d_model, backbone.n_layers, backbone.options)


def refuse_decision_options(run: str, targets: list[float] | None, memory: str | None) -> None:
    """Raise CheckpointError for options that mean nothing to the RecurrentPPO in ``run``."""
    for flag, value in (("--targets", targets), ("--memory", memory)):
        if value is not None:
            raise CheckpointError(f"{flag} is for decision agents; {run} holds a RecurrentPPO")


def player_of(agent: RecurrentPPO, config: PPOConfig, ablation: bool, env_id: str | None = None) -> Player:
    """The agent in the environment of its config, or in ``env_id`` with the same wrappers."""
    env_id = env_id or config.env
    make = functools.partial(make_env, env_id, **wrappers(config))
    return ppo_player(agent, env_id, make, ablation)


def wrappers(config: PPOConfig) -> dict[str, Any]:
    """How the environments are shown, as arguments of ``make_env``."""
    return dict(previous_action=config.previous_action, previous_reward=config.previous_reward, images=True)


def make_ppo(config: PPOConfig, tell: Callable[[str], Any], seed: int | None = None) -> RecurrentPPO:
    """The untrained agent of a config whose backbone is settled. What the libraries warn of is told.

    Raises:
        Exception: one of USER_ERRORS; an EnvError for spaces that the agent cannot learn in.
    """
    check_device(config.device)
    env = vector_env(config)
    seed = (config.seed if seed is None else seed) % 2**31

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            agent = RecurrentPPO(
                policy_for(env.observation_space),
                env,
                learning_rate=falling(config.learning_rate, config.schedule),
                n_steps=config.n_steps,
                batch_size=config.batch_size,
                sequence_length=config.sequence_length,
                n_epochs=config.n_epochs,
                gamma=config.gamma,
                gae_lambda=config.gae_lambda,
                clip_range=falling(config.clip_range, config.clip_schedule),
                normalize_advantage=config.normalize_advantage,
                ent_coef=config.ent_coef,
                vf_coef=config.vf_coef,
                max_grad_norm=config.max_grad_norm,
                target_kl=config.target_kl,
                backbone=config.backbone.name,
                recompute_states=config.recompute_states,
                use_sde=config.use_sde,
                sde_sample_freq=config.sde_sample_freq,
                policy_kwargs=dict(
                    d_model=config.backbone.d_model,
                    n_layers=config.backbone.n_layers,
                    backbone_options=config.backbone.options,
                    reset_on_done=config.reset_on_done,
                    share_features_extractor=not config.separate_critic,
                    net_arch=config.net_arch,
                    activation_fn={"tanh": nn.Tanh, "relu": nn.ReLU}[config.activation],
                    ortho_init=config.ortho_init,
                    log_std_init=config.log_std_init,
                ),
                seed=seed,
                device=config.device,
            )
        except UserError:
            raise
        except (AssertionError, ValueError) as error:  # how Stable-Baselines3 says that spaces do not suit it
            raise EnvError(f"ppo cannot learn in {config.env}: {one_line(error)}") from None
    env.seed(seed + share(config.n_envs).start)  # of this process's first environment
    for warning in caught:
        tell(f"note: {one_line(warning.message)}")  # type: ignore[arg-type]
    return agent


def falling(value: float, schedule: str) -> Any:
    """A rate that stays, or falls to 0 over the run."""
    return LinearSchedule(value, 0.0, 1.0) if schedule == "linear" else value


def vector_env(config: PPOConfig) -> VecEnv:
    """The environments of a config, under VecNormalize if anything is to be normalised."""
    processes = config.vector == "processes"
    check_shares("n_envs", config.n_envs)
    n_envs = config.n_envs // n_ranks()
    env = make_vec_env(config.env, n_envs, seed=config.seed, processes=processes, **wrappers(config))
    space, keys = env.observation_space, None
    observation = config.normalize_observation
    if isinstance(space, gym.spaces.Dict):
        keys = [k for k, s in space.items() if isinstance(s, gym.spaces.Box) and not is_image_space(s)]
        observation = observation and bool(keys)
    elif is_image_space(space):  # scaled to 0 … 1 by the policy
        observation = False
    if not (observation or config.normalize_reward):
        return env
    normalized = VecNormalize(
        env, norm_obs=observation, norm_reward=config.normalize_reward, gamma=config.gamma, norm_obs_keys=keys
    )
    if n_ranks() > 1:
        share_statistics(normalized)
    return normalized


def policy_for(space: gym.Space) -> str:
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
