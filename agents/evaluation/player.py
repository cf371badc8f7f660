"""An agent in its environment, ready to be played and scored in one way, whatever algorithm it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym

from unroll.agents.evaluation.play import MAX_STEPS, N_ENVS, Predictor
from unroll.errors import HyperparameterError


@dataclasses.dataclass
class Player:
    """An agent in an environment."""

    agent: Predictor
    env_id: str
    make_env: Callable[..., gym.Env]
    """makes the environment as the agent sees it; keyword arguments go to ``gym.make``"""
    show: Callable[[gym.Env], gym.Env]
    """puts around an environment, as ``make_env`` of ``unroll.envs`` makes it, what the agent sees, for a recording"""
    facts: dict[str, Any]
    """what an evaluation's file says of the agent"""
    images: bool = False
    """whether that environment shows images as such, and not as rows of numbers"""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """arguments of the environment, which ``make_env`` gives it"""
    episodes: int = 20
    """how many episodes are played for each target, unless another number is asked for"""
    seed: int = 1_000_000
    """the reset seed of the first"""
    targets: list[float | None] = dataclasses.field(default_factory=lambda: [None])
    """returns to ask for; None: the agent takes no such wish"""
    reference: tuple[tuple[float, float], str] | tuple[None, None] = (None, None)
    """the mean returns of a random and of an expert policy, and where these come from"""
    forgetful: Predictor | None = None
    """the same agent with its memory wiped before every step, if that is to be played too"""
    warm: int = 20
    """steps after which a step takes as long as any other"""
    n_envs: int = N_ENVS
    """the most environments that are open at once"""
    max_steps: int = MAX_STEPS
    """steps after which an episode is cut"""
    chained: bool = False
    """whether the memory goes on from episode to episode, so that they are played one after another"""
    deterministic: bool = True
    """the likeliest action in every step; False: one that is drawn from the policy"""
    has_distribution: bool = True
    """whether there are other actions to draw than the likeliest"""
    other_task: bool = False
    """whether it is in another environment than the run is scored in, or in one with other arguments"""
    lending: Callable[[], AbstractContextManager[None]] | None = None
    """for ``make_env`` that gives environments in which the agent learns: a ``with`` around their use, after which the
    learning goes on. They must not be left in the middle of a step; None: they are the player's own"""

    def draw(self) -> None:
        """From now on actions are drawn from the policy.

        Raises:
            HyperparameterError: it has learned a single action, as with ``action_modes`` 0.
        """
        if not self.has_distribution:
            raise HyperparameterError("nothing can be drawn: with action_modes 0 a policy has learned a single action")
        self.deterministic = False

    def as_told(self, evaluation: Any) -> Player:
        """The same player with the numbers of an evaluation's config."""
        return dataclasses.replace(
            self,
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            n_envs=evaluation.n_envs,
            max_steps=evaluation.max_steps,
        )
