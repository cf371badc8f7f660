"""An agent outside of the wrappers that it learned in is shown what the environment itself shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor

from unroll.envs.spaces import in_words, is_text
from unroll.envs.wrappers import CheckedFlatten, OtherForm, PreviousStep
from unroll.errors import EnvError


class Shown:
    """Makes what ``gym.make``'s environment shows, one observation or a batch, what ``make_env``'s shows.

    ``env`` is one of ``make_env``. What is in its form already stays as it is.
    """

    def __init__(self, env: gym.Env):
        self.space = env.observation_space
        self._layers: list[CheckedFlatten | OtherForm] = []
        self._has_previous = False
        while isinstance(env, Monitor | PreviousStep | CheckedFlatten | OtherForm):
            if isinstance(env, CheckedFlatten | OtherForm):
                self._layers.insert(0, env)
            self._has_previous = self._has_previous or isinstance(env, PreviousStep)
            env = env.env
        self.raw = env.observation_space
        self._of_states = isinstance(self.raw, gym.spaces.Discrete) and not self._has_previous

    def prepare(self, observation: Any) -> Any:
        """Return the observation, or the batch, as the policy was shown it.

        Raises:
            EnvError: the policy was also shown the step before, which is missing.
        """
        if self._is_prepared(observation):
            return observation
        more = more_axes(self.raw, observation)
        if more not in (0, 1):
            return observation  # channels first, or Stable-Baselines3 says what is wrong with it
        if self._has_previous:
            raise EnvError(
                "predict: the policy was also shown the action or the reward of the step before; it takes "
                f"{in_words(self.space)}, as agent.get_env() shows it"
            )
        if more == 0:
            return self._one(observation)
        rows = [self._one(row) for row in rows_of(observation)]
        if isinstance(self.space, gym.spaces.Dict):
            return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return np.stack(rows)

    def _is_prepared(self, observation: Any) -> bool:
        if isinstance(self.space, gym.spaces.Dict):
            if not isinstance(observation, dict) or observation.keys() != self.space.spaces.keys():
                return False
        elif self._of_states and np.shape(observation) == self.space.shape:
            # As many states as there are look like the row of one, but for what it says.
            return bool(np.isin(observation, (0, 1)).all() and np.sum(observation) == 1)
        return more_axes(self.space, observation) in (0, 1)

    def _one(self, observation: Any) -> Any:
        for layer in self._layers:
            observation = layer.observation(observation)
        return observation


def more_axes(space: gym.Space, observation: Any) -> int | None:
    """How many axes more than those of a space all parts of an observation have; None: it does not fit."""
    try:
        parts = list(_parts(space, observation))
        counts = {np.ndim(value) - len(shape) for shape, value in parts}
    except (LookupError, TypeError, ValueError):
        return None
    if len(counts) != 1 or min(counts) < 0:
        return None
    more = counts.pop()
    return more if all(np.shape(value)[more:] == shape for shape, value in parts) else None


def rows_of(batch: Any) -> list[Any]:
    """Take the rows of a batch apart."""
    if isinstance(batch, dict):
        keys = list(batch)
        return [dict(zip(keys, row, strict=True)) for row in zip(*map(rows_of, batch.values()), strict=True)]
    if isinstance(batch, tuple):
        return list(zip(*map(rows_of, batch), strict=True))
    return list(batch)


def _parts(space: gym.Space, observation: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    """The shape and the value of each part that is numbers."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.items():
            if not is_text(part):
                yield from _parts(part, observation[key])
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(observation, tuple):
            raise TypeError
        for part, value in zip(space, observation, strict=True):
            yield from _parts(part, value)
    else:
        yield space.shape or (), observation
