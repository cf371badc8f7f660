"""Environments from an id: looked up in Gymnasium's registry alone, with flat observations."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import io
import logging
import re
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation, TransformObservation
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from unroll.envs.saving import EpisodeMonitor
from unroll.envs.tasks import MEMORY_TASKS, NO_VELOCITY_TASKS
from unroll.envs.vector import ProcessVecEnv
from unroll.envs.wrappers import PreviousStep, ReturnToGo
from unroll.errors import EnvError

log = logging.getLogger(__name__)

for name, task in (NO_VELOCITY_TASKS | MEMORY_TASKS).items():
    gym.register(name, **task)

# packages that register environments when they are imported: how the ids begin, and the extra that installs them
ELSEWHERE = {
    "gymnasium_robotics": (("Adroit", "Fetch", "PointMaze", "AntMaze", "FrankaKitchen", "Hand"), "robotics"),
    "popgym": (("popgym-",), "popgym"),
}


def make_env(
    env_id: str, *, previous_action: bool = False, previous_reward: bool = False, images: bool = False, **kwargs: Any
) -> gym.Env:
    """``gym.make`` with one flat row of numbers as observation, as in the datasets.

    A goal environment's row is observation ⊕ desired_goal. ``previous_action`` and ``previous_reward`` add what
    PreviousStep shows, at its end. With ``images`` an observation that is an image, or a Dict with one, stays as it is
    (then PreviousStep's is a Dict). ``kwargs`` go to gym.make.

    Raises:
        EnvError: it cannot be made, or its actions cannot be shown.
    """
    find_env(env_id)
    _log_mujoco_warnings()  # before a model is compiled, which warns as well
    if env_id.startswith("popgym-"):
        kwargs = {"disable_env_checker": True} | kwargs  # its warnings are for popgym's authors
    try:
        env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise EnvError(f"{env_id}: {' '.join(str(error).split())}") from None
    flat = not (images and _has_image(env.observation_space))
    if flat:
        env = _flatten(env)
    if previous_action or previous_reward:
        env = PreviousStep(env, previous_action, previous_reward)
        if flat:
            env = FlattenObservation(env)  # in the order of the Dict's keys: the observation is first
    return env


def _has_image(space: gym.Space) -> bool:
    """By the rule that decides where Stable-Baselines3 uses a CNN."""
    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    return any(is_image_space(part) for part in parts)


def _flatten(env: gym.Env) -> gym.Env:
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict) and "desired_goal" in space.spaces and "observation" in space.spaces:
        # not FilterObservation: a Dict space would sort the goal to the front
        pair = gym.spaces.Tuple([space["observation"], space["desired_goal"]])
        env = TransformObservation(env, lambda obs: (obs["observation"], obs["desired_goal"]), pair)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return env
    return FlattenObservation(env)


def find_env(env_id: str) -> None:
    """Raise EnvError unless the registry has ``env_id``; nothing that a file names is ever imported."""
    if ":" in env_id:
        raise EnvError(f"{env_id}: an environment is named by its registered id, without a module")
    if env_id not in gym.registry and importlib.util.find_spec("gymnasium_robotics"):
        # it prints advice about versions of environments that nobody asked for
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
    if env_id not in gym.registry and env_id.startswith("popgym-") and importlib.util.find_spec("popgym"):
        import popgym  # noqa: F401 - it registers its environments
    if env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.registry for those that are"
        for package, (beginnings, extra) in ELSEWHERE.items():
            if env_id.startswith(beginnings) and not importlib.util.find_spec(package):
                hint = f"it comes with {package.replace('_', '-')}: pip install -e '.[{extra}]'"
        raise EnvError(f"environment {env_id!r} is not registered; {hint}")


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int = 0,
    target_return: float | None = None,
    processes: bool = False,
    **kwargs: Any,
) -> VecEnv:
    """``n_envs`` environments as a Stable-Baselines3 vector, in this process or each in one of its own (see
    envs/processes.py); with ``target_return``, each under ReturnToGo. ``kwargs`` are make_env's.

    Raises:
        EnvError: one cannot be made.
    """
    find_env(env_id)
    one = functools.partial(_make_one, gym.spec(env_id), target_return, kwargs)
    vector = ProcessVecEnv([one] * n_envs, env_id) if processes else DummyVecEnv([one] * n_envs)
    vector.seed(seed)
    return vector


def _make_one(spec: gym.envs.registration.EnvSpec, target_return: float | None, kwargs: dict[str, Any]) -> gym.Env:
    gym.registry.setdefault(spec.id, spec)  # another process knows no environment that was registered in this one
    env = make_env(spec.id, **kwargs)
    return EpisodeMonitor(env if target_return is None else ReturnToGo(env, target_return))


_SHOWN: set[str] = set()  # kinds of warnings


def _log_mujoco_warnings() -> None:
    """MuJoCo writes its warnings to MUJOCO_LOG.TXT in the user's folder unless it is given somewhere else to put
    them."""
    import mujoco

    mujoco.set_mju_user_warning(_log_warning)


def _log_warning(message: str) -> None:
    """A warning once in a process, whatever its numbers are; again at debug level."""
    kind = re.sub(r"\d[\d.e+-]*", "", message)
    log.log(logging.DEBUG if kind in _SHOWN else logging.WARNING, "MuJoCo: %s", message.strip())
    _SHOWN.add(kind)
