"""Look up the environment that a dataset names: whether it exists, its spaces, its step limit.

Datasets are read without environments. Only when a file names one is ``unroll.envs.make`` imported,
and the simulators with it. A name that a file gives is looked up among the registered ids; it never
imports anything by itself.
"""

from __future__ import annotations

import functools
import logging
import re
import warnings

import gymnasium as gym

from unroll.errors import EnvError

log = logging.getLogger(__name__)


def is_env_id(text: object) -> bool:
    """Check that `text` has the form of an environment's id, without a module to import."""
    return isinstance(text, str) and re.fullmatch(r"[\w./-]{1,200}", text) is not None


def is_registered(env_id: str) -> bool:
    """Say whether an environment can be made from this id."""
    from unroll.envs.make import find_env

    try:
        find_env(env_id)
    except EnvError:
        return False
    return True


def step_limit(env_id: str | None) -> int | None:
    """Return ``max_episode_steps`` of a registered environment, or None."""
    if not env_id or not is_registered(env_id):
        return None
    return gym.registry[env_id].max_episode_steps


@functools.cache
def env_spaces(env_id: str | None) -> tuple[int | None, gym.Space | None]:
    """Return the observation width and the action space of a registered environment.

    Both are None where there is no such environment or it cannot be built. The width is None for
    dict observations: a dataset decides itself which of their entries it keeps.
    """
    if not env_id:
        return None, None

    from unroll.envs.make import make_env

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old versions: only the spaces are wanted
            env = make_env(env_id)
            raw_space = env.unwrapped.observation_space
            flat_shape = env.observation_space.shape
            action_space = env.action_space
            env.close()
    except Exception as error:
        # A simulator that cannot start raises anything. The data can be trained on without it.
        log.debug("%s cannot be built: %s", env_id, error)
        return None, None

    if isinstance(raw_space, gym.spaces.Dict) or flat_shape is None:
        return None, action_space
    return flat_shape[0], action_space
