"""Environments in which an agent learns, lent to an evaluation: where no more of them can be open."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from unroll.agents.common.distributed import world
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.errors import EnvError, TrainingError


class LentEnv(gym.Env):
    """One environment of a vector by itself, wherever it runs. Closing it leaves it open."""

    def __init__(self, vector: VecEnv, i: int, env_id: str):
        self._vector = vector
        self._i = i
        self.spec = gym.spec(env_id)
        self.observation_space = vector.observation_space
        self.action_space = vector.action_space
        if vector.has_attr("action_masks"):
            self.action_masks = functools.partial(self._call, "action_masks")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._call("reset", seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._call("step", action)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._vector.env_method(method, *args, indices=self._i, **kwargs)[0]


class Lender:
    """Lends the environments of an agent.

    Raises:
        TrainingError: several processes learn together, of which one alone evaluates.
    """

    def __init__(self, agent: RecurrentPPO, env_id: str):
        if world.size > 1:
            raise TrainingError("evaluation.reuse_envs true is for one process")
        self.agent = agent
        self.env_id = env_id
        self._next = 0

    def make_env(self, **kwargs: Any) -> gym.Env:
        """Lend the next of the environments, all of them in turn."""
        if kwargs:
            raise EnvError(f"{self.env_id}: the environments that are learned in are not made with {', '.join(kwargs)}")
        vector = self._vector()
        env = LentEnv(vector, self._next % vector.num_envs, self.env_id)
        self._next += 1
        return env

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Go on with the learning after the ``with``, as if nothing had been played where that is possible."""
        vector = self._vector()
        saved: list[Any] = [None]
        if vector.has_attr("save_state"):
            saved = vector.env_method("save_state")
        self._next = 0
        try:
            yield
        except BaseException:  # an environment that failed can hardly be put back
            with contextlib.suppress(Exception):
                self._give_back(saved)
            raise
        self._give_back(saved)

    def _give_back(self, saved: list[Any]) -> None:
        agent = self.agent
        if agent.env is None or agent._last_obs is None:  # no episode has begun
            return
        if all(state is not None for state in saved):
            for i, state in enumerate(saved):
                self._vector().env_method("load_state", state, indices=i)
            return

        # New episodes, of seeds that are not the evaluation's.
        agent.env.seed(((agent.seed or 0) + agent.num_timesteps) % 2**31)
        agent._last_obs = agent.env.reset()  # type: ignore[assignment]
        agent._last_episode_starts = np.ones(agent.n_envs, bool)

    def _vector(self) -> VecEnv:
        """The vector itself, below wrappers that normalise or turn what it shows."""
        assert self.agent.env is not None
        return self.agent.env.unwrapped
