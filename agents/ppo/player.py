"""RecurrentPPO in its environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from unroll.agents.common.machine import device_name
from unroll.agents.evaluation.player import Player
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.agents.ppo.config import PPOConfig
from unroll.agents.ppo.lending import Lender
from unroll.agents.ppo.rollouts import ask_masks
from unroll.envs.datasets.images import parts_of
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.make import make_env
from unroll.envs.own import registered_id
from unroll.envs.spaces import in_words
from unroll.envs.wrappers import CheckedFlatten, PreviousStep
from unroll.errors import EnvError
from unroll.policies.backbones import State
from unroll.policies.masking import check_masks

ONE_CHAIN = "carried, from episode to episode too"


class PPOActor:
    """RecurrentPPO as a Predictor for environments without VecNormalize around them.

    ``forget``: its memory is that of an episode's first step in every step.
    """

    takes_masks = True

    def __init__(self, agent: RecurrentPPO, normalizer: VecNormalize | None = None, forget: bool = False):
        self.agent = agent
        self.normalizer = normalizer
        self.forget = forget
        self.steps = 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        if self.normalizer is not None and self.normalizer.norm_obs:
            observation = self.normalizer.normalize_obs(observation)
        if not deterministic and self.agent.use_sde and episode_start is not None:
            self._draw_noise(episode_start)
        if self.forget:
            state = None
            episode_start = None
        return self.agent.predict(observation, state, episode_start, deterministic, action_masks)

    def _draw_noise(self, episode_start: np.ndarray) -> None:
        """Draw the noise of gSDE anew where an episode begins or a row is gone, and as often as in a rollout."""
        every = self.agent.sde_sample_freq
        drawn = self.agent.policy.action_dist.exploration_matrices  # type: ignore[attr-defined]
        if episode_start.any() or len(drawn) != len(episode_start) or (every > 0 and self.steps % every == 0):
            self.agent.policy.reset_noise(len(episode_start))
        self.steps += 1


class MaskedPredictor:
    """RecurrentPPO for Stable-Baselines3's ``evaluate_policy(MaskedPredictor(agent, env), env)``, which knows no masks.

    It asks ``env`` for its ``action_masks()`` before every action. sb3-contrib's own evaluation for masks hands no
    state back, so that a memory would be empty at every step. As for ``evaluate_policy``, ``env`` may be a single one.
    """

    def __init__(self, agent: RecurrentPPO, env: VecEnv | gym.Env):
        self.agent = agent
        self.env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, State]:
        masks = check_masks(ask_masks(self.env), self.env.action_space, self.env.num_envs)
        return self.agent.predict(observation, state, episode_start, deterministic, masks)


def ppo_player(
    agent: RecurrentPPO,
    config: PPOConfig,
    ablation: bool,
    env_name: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    lender: Lender | None = None,
) -> Player:
    """Put the agent in the environment of its config, or in another one with the same wrappers.

    The statistics of its VecNormalize stay as they are. ``ablation``: also play with the memory wiped. ``lender``: play
    in the environments that the agent learns in.

    Raises:
        EnvError: the environment does not exist, or does not show and take what the policy was trained on.
    """
    env_id = registered_id(env_name or config.env)
    own = dict(config.env_kwargs if env_kwargs is None else env_kwargs)
    shown = wrappers(config)

    def make(**kwargs: Any) -> gym.Env:
        return make_env(env_id, env_kwargs=own, **shown, **kwargs)

    def show(env: gym.Env) -> gym.Env:
        """The same of an environment whose observations are flat already, or hold images."""
        if not (config.previous_action or config.previous_reward):
            return env
        shown = PreviousStep(env, config.previous_action, config.previous_reward)
        return CheckedFlatten(shown) if parts_of(env.observation_space) is None else shown

    if lender is None:
        check_spaces(env_id, make(), agent)
    normalizer = agent.get_vec_normalize_env()
    forgets = agent.policy.reset_on_done
    return Player(
        agent=PPOActor(agent, normalizer),
        env_id=env_id,
        make_env=make if lender is None else lender.make_env,
        lending=None if lender is None else lender.lending,
        show=show,
        images=True,
        env_kwargs=own,
        facts={
            "agent": "RecurrentPPO",
            "steps": agent.num_timesteps,
            "memory": "carried" if forgets else ONE_CHAIN,
            "device": device_name(agent.device),
        },
        chained=not forgets,
        reference=(None, None) if own else reference_returns(env_id),  # arguments may change what is paid
        forgetful=PPOActor(agent, normalizer, forget=True) if ablation else None,
    )


def wrappers(config: PPOConfig) -> dict[str, Any]:
    """How the environments are shown, as arguments of ``make_env``."""
    return {
        "previous_action": config.previous_action,
        "previous_reward": config.previous_reward,
        "images": True,
    }


def check_spaces(env_id: str, env: gym.Env, agent: RecurrentPPO) -> None:
    """Raise EnvError unless the environment observes and acts as those that the agent learned in; closes it."""
    learned = agent.env
    assert learned is not None
    env.close()
    # The outer spaces of a vector have channels first and no bounds.
    expected = learned.unwrapped.observation_space
    for what, have, wanted in (
        ("observes", env.observation_space, expected),
        ("takes actions of", env.action_space, agent.action_space),
    ):
        if not _same(have, wanted):
            raise EnvError(f"{env_id} {what} {in_words(have)}, the policy was trained on {in_words(wanted)}")


def _same(a: gym.Space, b: gym.Space) -> bool:
    """Whether a policy for the one space fits the other: bounds of a Box may differ."""
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return a.shape == b.shape
    if isinstance(a, gym.spaces.Dict) and isinstance(b, gym.spaces.Dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b
