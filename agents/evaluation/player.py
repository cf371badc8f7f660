"""Agents of either kind in their environments, ready to be played and scored in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.evaluation.play import Predictor
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.make import make_env
from unroll.envs.spaces import in_words
from unroll.envs.wrappers import ReturnToGo
from unroll.errors import EnvError
from unroll.policies.actions import build_space
from unroll.policies.backbones import State


@dataclasses.dataclass
class Player:
    """An agent in an environment.

    Args:
        make_env: makes the environment as the agent sees it; keyword arguments go to ``gym.make``.
        targets: returns to ask for; None: the agent takes no such wish.
        facts: what an evaluation's file says of the agent.
        reference: the mean returns of a random and of an expert policy, and where these come from.
        forgetful: the same agent with its memory wiped before every step, if that is to be played too.
        warm: steps after which a step takes as long as any other.
    """

    agent: Predictor
    env_id: str
    make_env: Callable[..., gym.Env]
    facts: dict[str, Any]
    targets: list[float | None] = dataclasses.field(default_factory=lambda: [None])
    reference: tuple[tuple[float, float], str] | tuple[None, None] = (None, None)
    forgetful: Predictor | None = None
    warm: int = 20


def decision_player(
    agent: DecisionAgent, env_id: str, targets: list[float] | None, memory: Literal["carried", "window"]
) -> Player:
    """A decision agent that is asked for each of ``targets``, None: for its default ones; without a return condition
    for nothing. It has this memory from now on.

    Raises:
        EnvError: the environment does not exist, or does not show and take what the policy was trained on.
    """
    env, config, task = make_env(env_id), agent.policy.config, agent.task
    width, space = env.observation_space.shape, build_space(config["action_space"])
    if width != (config["observation_dim"],):
        expected = config["observation_dim"]
        raise EnvError(f"{env_id} observes {width}, the policy was trained on {expected} numbers")
    if type(env.action_space) is not type(space) or env.action_space.shape != space.shape:
        raise EnvError(f"{env_id} takes actions of {env.action_space}, the policy was trained on {space}")
    env.close()
    agent.policy.memory = memory
    asked: list[float | None] = [None]
    if config["condition"] == "return":
        asked = list(dict.fromkeys(default_targets(agent) if targets is None else targets))
    known = env_id == task.get("env") and task.get("reference_returns")
    return Player(
        agent,
        env_id,
        lambda **kwargs: ReturnToGo(make_env(env_id, **kwargs)),
        facts={
            "agent": "DecisionAgent",
            "dataset": task.get("dataset"),
            "dataset_return_mean": task.get("return_mean"),
            "updates": agent.num_timesteps,
            "memory": memory,
        },
        targets=asked,
        reference=(task["reference_returns"], task["reference_name"]) if known else (None, None),
        warm=config["context"],
    )


def default_targets(agent: DecisionAgent) -> list[float]:
    """The median, the 90 % quantile and the maximum of the dataset's returns."""
    quantiles = agent.task["return_quantiles"]
    return [round(quantiles[q], 1) for q in ("0.5", "0.9", "1")]


def ppo_player(
    agent: RecurrentPPO, env_id: str, make_env: Callable[..., gym.Env], ablation: bool, **facts: Any
) -> Player:
    """RecurrentPPO in environments of ``make_env``, with the statistics of its VecNormalize as they are.

    Raises:
        EnvError: the environment does not exist, or does not show and take what the policy was trained on.
    """
    env, learned = make_env(), agent.env
    assert learned is not None
    normalizer = agent.get_vec_normalize_env()
    for what, have, expected in (  # the outer spaces of a vector have channels first and no bounds
        ("observes", env.observation_space, learned.unwrapped.observation_space),
        ("takes actions of", env.action_space, agent.action_space),
    ):
        if not _same(have, expected):
            raise EnvError(f"{env_id} {what} {in_words(have)}, the policy was trained on {in_words(expected)}")
    env.close()
    return Player(
        PPOActor(agent, normalizer),
        env_id,
        make_env,
        facts={"agent": "RecurrentPPO", "steps": agent.num_timesteps, "memory": "carried", **facts},
        reference=reference_returns(env_id),
        forgetful=PPOActor(agent, normalizer, forget=True) if ablation else None,
    )


class PPOActor:
    """RecurrentPPO as a Predictor for environments without VecNormalize around them.

    ``forget``: its memory is that of an episode's first step in every step.
    """

    takes_masks = True

    def __init__(self, agent: RecurrentPPO, normalizer: VecNormalize | None = None, forget: bool = False):
        self.agent, self.normalizer, self.forget = agent, normalizer, forget

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
        if self.forget:
            state = episode_start = None
        masks = {} if action_masks is None else {"action_masks": action_masks}
        return self.agent.predict(observation, state, episode_start, deterministic, **masks)


class MaskedPredictor:
    """RecurrentPPO for Stable-Baselines3's ``evaluate_policy(MaskedPredictor(agent, env), env)``, which knows no masks:
    it asks ``env`` for its ``action_masks()`` before every action.

    sb3-contrib's own evaluation for masks hands no state back, so that a memory would be empty at every step.
    """

    def __init__(self, agent: RecurrentPPO, env: VecEnv):
        self.agent, self.env = agent, env

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, State]:
        masks = np.stack(self.env.env_method("action_masks"))
        return self.agent.predict(observation, state, episode_start, deterministic, masks)


def _same(a: gym.Space, b: gym.Space) -> bool:
    """Whether a policy for the one fits the other: bounds of a Box may differ."""
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return a.shape == b.shape
    if isinstance(a, gym.spaces.Dict) and isinstance(b, gym.spaces.Dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b
