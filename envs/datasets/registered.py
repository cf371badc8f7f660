"""Look up the environment that a dataset names: whether it exists, its spaces, its step limit.

Datasets are read without environments. Only when a file names one is ``unroll.envs.make`` imported,
and the simulators with it. A name that a file gives is looked up among the registered ids; it never
imports anything by itself. Arguments that a file gives are plain values, or are not used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np

from unroll.errors import EnvError, one_line

log = logging.getLogger(__name__)

MOST_TEXT = 1 << 20  # characters of all arguments as JSON
MAX_DEPTH = 16  # nested lists and dicts
NO_VALUE = object()
RESETS = 20
NOT_OURS = ("id", "disable_env_checker", "render_mode")  # of gym.make; a file says nothing about these


class Known(NamedTuple):
    """An environment that can be made here."""

    observation_space: gym.Space  # as it is registered
    width: int | None  # of the observation as one row of numbers; None where it is none
    action_space: gym.Space


Key: TypeAlias = tuple[str, str, object]  # id, arguments as JSON, where its code is
# → the environment, or why it cannot be made.
_FOUND: dict[Key, Known | str] = {}
# → the rows that it shows after resets; None if it shows none.
_SHOWN: dict[Key, np.ndarray | None] = {}


def is_env_id(text: object) -> bool:
    """Check that `text` has the form of an environment's id, without a module to import."""
    return isinstance(text, str) and re.fullmatch(r"[\w./-]{1,200}", text) is not None


def is_registered(env_id: str) -> bool:
    """Say whether there is an environment of this id."""
    from unroll.envs.make import find_env

    try:
        find_env(env_id)
    except EnvError:
        return False
    return True


def step_limit(env_id: str | None, env_kwargs: dict[str, Any]) -> int | None:
    """Return ``max_episode_steps`` of a registered environment with these arguments, or None."""
    if not env_id or not is_registered(env_id):
        return None
    return env_kwargs.get("max_episode_steps", gym.registry[env_id].max_episode_steps)


def known_env(env_id: str | None, env_kwargs: dict[str, Any]) -> Known | None:
    """Return the spaces of an environment; None where none is named or it cannot be made here."""
    found = _look_up(env_id, env_kwargs) if env_id else None
    return found if isinstance(found, Known) else None


def why_unknown(env_id: str, env_kwargs: dict[str, Any]) -> str | None:
    """Say in a line why an environment cannot be made here; None where it can."""
    found = _look_up(env_id, env_kwargs)
    return found if isinstance(found, str) else None


def _look_up(env_id: str, env_kwargs: dict[str, Any]) -> Known | str:
    """Make the environment once for each process, and keep its spaces or the error."""
    from unroll.envs.make import find_env, flatten_observation, open_env, without_texts

    try:
        find_env(env_id)
    except EnvError as error:
        return str(error)
    key = _key(env_id, env_kwargs)
    if key not in _FOUND:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about old versions: only the spaces are wanted
                env = open_env(env_id, env_kwargs)
                observed = env.observation_space
                flat = flatten_observation(without_texts(env)).observation_space.shape
                _FOUND[key] = Known(observed, flat[0] if flat else None, env.action_space)
                with contextlib.suppress(Exception):  # what is wanted of it is known
                    env.close()
        except Exception as error:
            # A simulator that cannot start raises anything. The data can be trained on without it.
            log.debug("%s cannot be built: %s", env_id, error)
            _FOUND[key] = str(error) if isinstance(error, EnvError) else f"{env_id}: {one_line(error)}"
    return _FOUND[key]


def _key(env_id: str, env_kwargs: dict[str, Any]) -> Key:
    return env_id, json.dumps(env_kwargs, sort_keys=True), gym.registry[env_id].entry_point


def first_observations(env_id: str, env_kwargs: dict[str, Any]) -> np.ndarray | None:
    """Reset an environment some times, once for each process; the rows that it shows, [RESETS, width].

    None if its observation is no row of finite numbers, or it fails.
    """
    from unroll.envs.make import make_env

    known = known_env(env_id, env_kwargs)
    if known is None or known.width is None:
        return None
    key = _key(env_id, env_kwargs)
    if key not in _SHOWN:
        _SHOWN[key] = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                env = make_env(env_id, env_kwargs=env_kwargs)
                rows = np.stack([np.asarray(env.reset(seed=seed)[0], np.float64) for seed in range(RESETS)])
                env.close()
            if np.isfinite(rows).all():
                _SHOWN[key] = rows
        except Exception as error:  # playing will tell of it
            log.debug("%s cannot be reset: %s", env_id, error)
    return _SHOWN[key]


def not_plain(env_kwargs: Any) -> list[str]:
    """List the arguments of an environment that a file must not give.

    Plain are numbers, text that is no reference to code, None, and lists and dicts of these.
    """
    if not isinstance(env_kwargs, dict):
        return ["its arguments"]
    found = []
    for name, value in env_kwargs.items():
        if not isinstance(name, str) or not name.isidentifier() or name in NOT_OURS:
            found.append(str(name)[:100])
            continue
        no_limit = name == "max_episode_steps" and (type(value) is not int or value < 1)
        if no_limit or not all(map(_is_plain, _leaves(value, 0))):
            found.append(name)
    if not found and len(json.dumps(env_kwargs)) > MOST_TEXT:
        found.append("more text than arguments have")
    return found


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """Iterate over the values in nested lists and dicts. NO_VALUE stands for what makes these not plain."""
    if depth > MAX_DEPTH:
        yield NO_VALUE
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, depth + 1)
    elif isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str) or key.endswith("entry_point"):
                yield NO_VALUE
            else:
                yield from _leaves(part, depth + 1)
    else:
        yield value


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        # module:Class and module:id are what Gymnasium imports; <function f at 0x…> stands for what JSON cannot hold.
        return not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w./-]*|<.*>", value, re.DOTALL)
    return value is None or isinstance(value, bool | int | float)


def in_words(env_kwargs: dict[str, Any]) -> str:
    """List the arguments of an environment on one line; nothing where there are none."""
    listed = []
    for name, value in env_kwargs.items():
        text = " ".join(str(value).split())
        listed.append(f"{name} {text if len(text) <= 60 else f'{text[:57]}…'}")
    return ", ".join(listed)
