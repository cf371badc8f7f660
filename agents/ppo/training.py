"""RecurrentPPO that is about to learn, from its config, and back from a checkpoint."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule, get_device
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from unroll.agents.algorithm import Tell, shared_arguments
from unroll.agents.common.callbacks import WholeUpdates
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint
from unroll.agents.common.distributed import world
from unroll.agents.common.guards import check_device
from unroll.agents.common.machine import not_as_made
from unroll.agents.common.restoring import check_goes_on, check_size, of_checkpoint
from unroll.agents.evaluation.player import Player
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.agents.ppo.checkpoint import pack_ppo, read_ppo, restore_ppo, resume_ppo, write_ppo
from unroll.agents.ppo.config import PPOConfig
from unroll.agents.ppo.lending import Lender
from unroll.agents.ppo.player import ppo_player, wrappers
from unroll.agents.ppo.pretraining import as_observed, check_episodes, pretrain
from unroll.agents.ppo.rollouts import has_masks
from unroll.agents.ppo.spaces import policy_for
from unroll.agents.ppo.transfer import take_weights
from unroll.configs.loading import plain_config, read_config
from unroll.configs.sizes import small_seed
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.registered import in_words as arguments_in_words
from unroll.envs.datasets.sources import load_episodes
from unroll.envs.make import make_vec_env
from unroll.envs.own import registered_id
from unroll.envs.spaces import in_words
from unroll.envs.tensor import TensorVector
from unroll.envs.tensor_tasks import make_tensor_env
from unroll.errors import EnvError, UserError, one_line
from unroll.policies.actor_critic import fill_options
from unroll.policies.backbones import count_parameters

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class PPOTraining:
    """See ``unroll.agents.algorithm.Training``.

    A run that goes on does so in the middle of its episodes, where its environments can be saved (see
    envs/saving.py), and with new episodes elsewhere. A pretraining that was interrupted begins again.
    """

    def __init__(self, config: PPOConfig, tell: Tell):
        self.config = config
        self.name = registered_id(config.env)
        self._tell = tell
        self._played = False  # then the pretraining, if there is one, is over
        if config.resume and checkpoints(config.run_dir or ""):
            self.agent = self._resumed(tell)
        else:
            self.agent = self._untrained(tell)
        self._whole = WholeUpdates(self._pack, lambda packed: resume_ppo(self.agent, "", *packed))
        self.callbacks: list[BaseCallback] = [self._whole]
        if config.pretrain.dataset is not None and not self._played:
            self._episodes = self._load(config.pretrain.dataset)
            self.callbacks.insert(0, AtStart(self._pretrain))
        self.player()  # says now what would not fit
        self._began = time.monotonic()
        self._steps_before = self.agent.num_timesteps

    def _load(self, dataset: str) -> Episodes:
        """The episodes to pretrain on, as the agent would have seen them.

        Raises:
            UserError: there are none, or the agent cannot learn from them.
        """
        config = self.config
        episodes = load_episodes(dataset)
        recorded = described(episodes.env_id or "an environment that it does not name", episodes.env_kwargs)
        here = described(self.name, config.env_kwargs)
        if recorded != here:
            self._tell(f"note: {episodes.name} was recorded in {recorded}, and PPO goes on in {here}")
        space = self.agent.action_space
        counted = episodes.counted_as(space)
        episodes = as_observed(counted, space, config.previous_action, config.previous_reward)
        check_episodes(self.agent, episodes).top(config.pretrain.top_fraction)
        return episodes

    def _pretrain(self) -> None:
        options = shared_arguments(self.config.pretrain, pretrain)
        pretrain(self.agent, self._episodes, **options, tell=self._tell)
        del self._episodes
        self._began = time.monotonic()

    def _untrained(self, tell: Tell) -> RecurrentPPO:
        """An agent before its first update, with the weights of another run if there is one to begin with."""
        agent = make_ppo(self.config, tell)
        if self.config.pretrain.weights is not None:
            tell(take_weights(agent, self.config.pretrain.weights))
        return agent

    def _resumed(self, tell: Tell) -> RecurrentPPO:
        path = latest_checkpoint(self.config.run_dir or "")
        tensors, state = read_ppo(path)
        if self.config.pretrain.dataset and not state["num_timesteps"]:
            tell("nothing was learned in the environments yet; the pretraining begins again")
            return self._untrained(tell)
        self._played = True
        # Where episodes begin anew, the run's first seed would bring its first episodes and draws again.
        agent = make_ppo(self.config, tell, seed=self.config.seed + int(state["num_timesteps"]))
        goes_on = resume_ppo(agent, path, tensors, state)
        check_goes_on(path, agent.policy.optimizer, agent.num_timesteps)
        if not goes_on:
            not_savable = f"{self.name} cannot be saved, so every environment begins a new episode"
            tell(f"goes on at step {agent.num_timesteps}; {not_savable}")
            return agent
        tell(f"goes on at step {agent.num_timesteps}")
        note = not_as_made(state, agent.device)
        if note:
            tell(note)
        return agent

    def _pack(self) -> Any:
        return pack_ppo(self.agent, plain_config(self.config))

    def describe(self) -> str:
        env = self.agent.env
        assert env is not None
        observed = in_words(env.unwrapped.observation_space)
        actions = in_words(env.action_space)
        env_id = described(self.name, self.config.env_kwargs)
        return f"{self.config.n_envs} × {env_id}: observes {observed}, takes actions of {actions}"

    def progress(self) -> str:
        steps = self.agent.num_timesteps - self._steps_before
        rate = f"{steps / (time.monotonic() - self._began):.0f} steps/s"
        returns = [episode["r"] for episode in self.agent.ep_info_buffer or []]
        return f"return {np.mean(returns):.4g}  {rate}" if returns else rate

    def player(self) -> Player | None:
        options = self.config.evaluation
        if not options.episodes:
            return None
        lender = Lender(self.agent, self.name) if options.reuse_envs else None
        try:
            player = ppo_player(self.agent, self.config, options.ablation, lender=lender)
        except EnvError as error:
            fault = EnvError(
                f"{error}; if no other can be open beside those that are learned in, --evaluation.reuse_envs true "
                "plays in them, and --evaluation.episodes 0 leaves evaluations out"
            )
            fault.details = error.details
            raise fault from error
        player = player.as_told(options)
        if lender is not None:
            player.n_envs = min(player.n_envs, self.agent.n_envs)
        return player

    def save(self, path: Path) -> None:
        write_ppo(path, *self._whole.packed)

    def go_back(self) -> None:
        if self._whole.packed is not None:
            _, state = self._whole.packed
            self.agent.num_timesteps = state["num_timesteps"]


class AtStart(BaseCallback):
    """Do ``action`` where learning begins: there is a log then, and signals are heard."""

    def __init__(self, action: Callable[[], None]):
        super().__init__()
        self.action = action

    def _on_training_start(self) -> None:
        self.action()

    def _on_step(self) -> bool:
        return True


def described(env_id: str, env_kwargs: dict[str, Any]) -> str:
    """An environment and its arguments in words."""
    listed = arguments_in_words(env_kwargs)
    return f"{env_id} with {listed}" if listed else env_id


def load_ppo(
    checkpoint: Path, device: str, env: VecEnv | None = None, changes: dict[str, Any] | None = None
) -> tuple[RecurrentPPO, PPOConfig]:
    """Load the agent of a checkpoint and the config that it was trained by.

    It is in ``env``, which must have VecNormalize around it if the run had; None: in one environment of its own.
    ``changes`` are arguments of its constructor in the place of the config's.

    Raises:
        CheckpointError: it is damaged, of another agent or version, or its config names what is not here.
    """
    tensors, state = read_ppo(checkpoint)
    config = read_config(state["config"], {"ppo": PPOConfig}, f"{checkpoint}/state.json")
    assert isinstance(config, PPOConfig)
    config.n_envs = 1 if env is None else env.num_envs
    config.vector = "serial"
    config.batch_size = None
    config.device = device  # type: ignore[assignment]
    with of_checkpoint(checkpoint):
        backbone = config.backbone
        options = fill_options(backbone.name, backbone.options)
        parameters = count_parameters(backbone.name, backbone.d_model, backbone.n_layers, options)
        check_size(tensors, parameters)
        agent = make_ppo(config, lambda _: None, env=env, changes=changes)
    restore_ppo(agent, checkpoint, tensors, state)
    assert agent.env is not None
    agent.masked = has_masks(agent.env)
    return agent, config


def make_ppo(
    config: PPOConfig,
    tell: Tell,
    seed: int | None = None,
    env: VecEnv | None = None,
    changes: dict[str, Any] | None = None,
) -> RecurrentPPO:
    """The untrained agent of a config whose backbone is settled, in ``env`` or in the config's environments.

    What the libraries warn of is told.

    Raises:
        UserError: what the config describes cannot be had here; an EnvError for spaces that the agent cannot learn in.
    """
    check_device(config.device)
    seed = small_seed(config.seed if seed is None else seed)
    given = env is not None  # then its random numbers stay as they are
    if env is None:
        env = vector_env(config)

    # Fields that the constructor takes by the same name, and those that it takes in another form.
    arguments = shared_arguments(config, RecurrentPPO)
    arguments |= {
        "learning_rate": falling(config.learning_rate, config.schedule),
        "clip_range": falling(config.clip_range, config.clip_schedule),
        "backbone": config.backbone.name,
        "policy_kwargs": policy_kwargs(config),
        "seed": None if given else seed,
    }
    del arguments["env"]  # a name
    arguments |= changes or {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            agent = RecurrentPPO(policy_for(env.observation_space), env, **arguments)
        except EnvError as error:
            raise EnvError(f"ppo cannot learn in {config.env}: {error}") from None
        except UserError:
            raise
        # How Stable-Baselines3 says that spaces do not suit it.
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise EnvError(f"ppo cannot learn in {config.env}: {one_line(error)}") from None
    if config.sequence_length is None and agent.steps_of_sequence < config.n_steps:
        length = agent.steps_of_sequence
        tell(f"note: sequences of {length} steps; --sequence_length {config.n_steps} lets gradients flow further")
    if not given:
        env.seed(seed + world.share(config.n_envs).start)  # of this process's first environment
    for warning in caught:
        tell(f"note: {one_line(warning.message)}")
    return agent


def policy_kwargs(config: PPOConfig) -> dict[str, Any]:
    """The arguments of the policy."""
    return {
        "d_model": config.backbone.d_model,
        "n_layers": config.backbone.n_layers,
        "backbone_options": config.backbone.options,
        "reset_on_done": config.reset_on_done,
        "separate_critic": config.separate_critic,
        "net_arch": config.net_arch,
        "activation_fn": ACTIVATIONS[config.activation],
        "ortho_init": config.ortho_init,
        "log_std_init": config.log_std_init,
    }


def falling(value: float, schedule: str) -> Any:
    """A rate that stays, or falls to 0 over the run."""
    return LinearSchedule(value, 0.0, 1.0) if schedule == "linear" else value


def vector_env(config: PPOConfig) -> VecEnv:
    """The environments of a config, under VecNormalize if anything is to be normalised."""
    world.check_divides("n_envs", config.n_envs)
    env: VecEnv
    if config.vector == "tensor":
        env = tensor_env(config)
    else:
        env = make_vec_env(
            registered_id(config.env),
            config.n_envs // world.size,
            seed=config.seed,
            processes=config.vector == "processes",
            env_kwargs=config.env_kwargs,
            **wrappers(config),
        )

    # Images are scaled to 0 … 1 by the policy, and are not normalised.
    space = env.observation_space
    keys = None
    observation = config.normalize_observation
    if isinstance(space, gym.spaces.Dict):
        keys = [k for k, s in space.items() if isinstance(s, gym.spaces.Box) and not is_image_space(s)]
        observation = observation and bool(keys)
    elif is_image_space(space):
        observation = False
    if not (observation or config.normalize_reward):
        return env
    normalized = VecNormalize(
        env, norm_obs=observation, norm_reward=config.normalize_reward, gamma=config.gamma, norm_obs_keys=keys
    )
    world.share_statistics(normalized)
    return normalized


def tensor_env(config: PPOConfig) -> VecEnv:
    """The environments of a config as tensors on its device.

    Raises:
        EnvError: the task has no such form, or an option is for environments of arrays.
    """
    if config.evaluation.reuse_envs:
        raise EnvError("evaluation.reuse_envs true is for environments of arrays, not for vector tensor")
    env = make_tensor_env(
        registered_id(config.env),
        config.n_envs,
        get_device(config.device),
        config.env_kwargs,
        config.previous_action,
        config.previous_reward,
    )
    return TensorVector(env)
