"""Environments from an id: looked up in Gymnasium's registry alone, with flat observations."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import logging
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation, TransformObservation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.wrappers import ReturnToGo

log = logging.getLogger(__name__)


class EnvironmentError(ValueError):
    """An environment that cannot be made; the message is one line for the user."""


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """``gym.make`` with flat float observations: a goal environment's is observation ⊕ desired_goal, as in the
    datasets."""
    find_env(env_id)
    try:
        env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise EnvironmentError(f"{env_id}: {' '.join(str(error).split())}") from None
    if env_id.startswith(("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer")):
        _log_mujoco_warnings()
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict) and "desired_goal" in space.spaces and "observation" in space.spaces:
        # not FilterObservation: a Dict space would sort the goal to the front
        pair = gym.spaces.Tuple([space["observation"], space["desired_goal"]])
        env = TransformObservation(env, lambda obs: (obs["observation"], obs["desired_goal"]), pair)
    if not (isinstance(space, gym.spaces.Box) and len(space.shape) == 1):
        env = FlattenObservation(env)
    return env


def find_env(env_id: str) -> None:
    """Raise EnvironmentError unless the registry has ``env_id``; nothing that a file names is ever imported."""
    if ":" in env_id:
        raise EnvironmentError(f"{env_id}: an environment is named by its registered id, without a module")
    if env_id not in gym.registry and importlib.util.find_spec("gymnasium_robotics"):
        # it prints advice about versions of environments that nobody asked for
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
    if env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3)
        robotics = ("Adroit", "Fetch", "PointMaze", "AntMaze", "FrankaKitchen", "Hand")
        if env_id.startswith(robotics):
            hint = "it comes with gymnasium-robotics: pip install -e '.[robotics]'"
        else:
            hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.registry for those that are"
        raise EnvironmentError(f"environment {env_id!r} is not registered; {hint}")


def make_vec_env(
    env_id: str, n_envs: int = 1, seed: int = 0, target_return: float | None = None, **kwargs: Any
) -> DummyVecEnv:
    """``n_envs`` environments in this process as a Stable-Baselines3 vector; with ``target_return``, each under
    ReturnToGo."""

    def one() -> gym.Env:
        env = make_env(env_id, **kwargs)
        return Monitor(env if target_return is None else ReturnToGo(env, target_return))

    vector = DummyVecEnv([one] * n_envs)
    vector.seed(seed)
    return vector


def _log_mujoco_warnings() -> None:
    """MuJoCo writes its warnings to MUJOCO_LOG.TXT in the user's folder unless it is given somewhere else to put
    them."""
    import mujoco

    mujoco.set_mju_user_warning(lambda message: log.debug("MuJoCo: %s", message))
