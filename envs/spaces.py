"""What a registered environment expects of a dataset, and observations of any space as flat float32 rows."""

from __future__ import annotations

import functools
import logging
import warnings

import gymnasium as gym

from unroll.envs.make import find_env, make_env
from unroll.errors import EnvError

log = logging.getLogger(__name__)


@functools.cache
def env_spaces(env_id: str | None) -> tuple[int | None, gym.Space] | None:
    """(observation width, action space) of a registered environment; None where there is none or it cannot be built.

    The width is None for dict observations: which of their entries a dataset keeps is its own affair.
    """
    if not env_id:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old versions of environments: only their spaces are wanted
            env = make_env(env_id)
            spaces = env.unwrapped.observation_space, env.observation_space.shape, env.action_space
            env.close()
    except Exception as error:  # a simulator that cannot start raises anything; the data can be trained on without it
        log.debug("%s cannot be built: %s", env_id, error)
        return None
    raw, shape, action_space = spaces
    return None if isinstance(raw, gym.spaces.Dict) or shape is None else shape[0], action_space


def is_registered(env_id: str) -> bool:
    try:
        find_env(env_id)
    except EnvError:
        return False
    return True


def step_limit(env_id: str | None) -> int | None:
    """``max_episode_steps`` of a registered environment."""
    return gym.registry[env_id].max_episode_steps if env_id and is_registered(env_id) else None
