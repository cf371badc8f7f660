"""The state of an environment as plain values, so that an episode that was cut off goes on to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from stable_baselines3.common.monitor import Monitor

# where classes come from whose state is in their attributes, as numbers, arrays and generators
KNOWN = (
    "gymnasium.envs.classic_control",
    "gymnasium.envs.mujoco",
    "gymnasium.wrappers.common",
    "gymnasium.wrappers.transform_observation",
    "unroll.envs",
)
MUJOCO_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
DERIVED = ("xpos", "xipos")  # of the step before: what mj_forward makes of the state is newer than what rewards read


class EpisodeMonitor(Monitor):
    """Stable-Baselines3's Monitor, whose environment can be saved in the middle of an episode: a vector's
    ``env_method("save_state")`` and ``env_method("load_state", …)`` reach it in any process. Its lists of episodes hold
    the last one alone: with all that ever were, a long run's memory would grow."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        for episodes in (self.episode_returns, self.episode_lengths, self.episode_times):
            episodes.clear()
        return super().reset(**kwargs)

    def save_state(self) -> dict[str, Any] | None:
        """Nested dicts, lists and tuples of numbers, text and arrays; None: this environment cannot be saved."""
        state = save_env(self.env)
        return None if state is None else {"env": state, "rewards": list(self.rewards), "needs_reset": self.needs_reset}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there, in an environment that was made alike and has been reset once."""
        load_env(self.env, state["env"])
        self.rewards, self.needs_reset = state["rewards"], state["needs_reset"]


def save_env(env: gym.Env) -> list[dict[str, Any]] | None:
    """The state of each wrapper and of the environment itself; None where it cannot be known.

    Known are Gymnasium's classic control and MuJoCo environments, the project's own, and any other environment that
    has the methods ``save_state() -> dict`` and ``load_state(dict)``.
    """
    layers = list(_layers(env))
    if not all(_has_hooks(layer) or _is_known(layer) for layer in layers):
        return None
    return [layer.save_state() if _has_hooks(layer) else _save_layer(layer) for layer in layers]


def load_env(env: gym.Env, state: list[dict[str, Any]]) -> None:
    """Put back what ``save_env`` gave.

    Raises:
        ValueError, KeyError, TypeError: it is the state of another environment.
    """
    for layer, values in zip(_layers(env), state, strict=True):
        if _has_hooks(layer):
            layer.load_state(values)
        else:
            _load_layer(layer, values)


def _layers(env: gym.Env) -> Iterator[Any]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _has_hooks(layer: Any) -> bool:
    return hasattr(type(layer), "save_state") and hasattr(type(layer), "load_state")


def _is_known(layer: Any) -> bool:
    module = type(layer).__module__
    return any(module == known or module.startswith(f"{known}.") for known in KNOWN)


def _save_layer(layer: Any) -> dict[str, Any]:
    values = {key: value for key, value in vars(layer).items() if _is_plain(value)}
    generators = {key: value for key, value in vars(layer).items() if isinstance(value, np.random.Generator)}
    state: dict[str, Any] = {"values": values, "random": {k: v.bit_generator.state for k, v in generators.items()}}
    if isinstance(layer, MujocoEnv):
        numbers = np.empty(mujoco.mj_stateSize(layer.model, MUJOCO_STATE))
        mujoco.mj_getState(layer.model, layer.data, numbers, MUJOCO_STATE)
        state["mujoco"] = {"state": numbers} | {name: getattr(layer.data, name).copy() for name in DERIVED}
    return state


def _load_layer(layer: Any, state: dict[str, Any]) -> None:
    for key, value in state["values"].items():
        if not _fits(value, vars(layer)[key]):
            raise ValueError(f"{type(layer).__name__}.{key} cannot be {str(value)[:40]}")
        setattr(layer, key, value)
    for key, value in state["random"].items():
        vars(layer)[key].bit_generator.state = value
    if isinstance(layer, MujocoEnv):
        _load_mujoco(layer, state["mujoco"])


def _load_mujoco(env: MujocoEnv, saved: dict[str, np.ndarray]) -> None:
    size = mujoco.mj_stateSize(env.model, MUJOCO_STATE)
    for name, shape in (("state", (size,)), *((name, getattr(env.data, name).shape) for name in DERIVED)):
        if saved[name].shape != shape or saved[name].dtype != np.float64:
            raise ValueError(f"the simulator's {name} is {saved[name].dtype} {saved[name].shape}, not float64 {shape}")
    mujoco.mj_setState(env.model, env.data, saved["state"], MUJOCO_STATE)
    mujoco.mj_forward(env.model, env.data)
    for name in DERIVED:
        getattr(env.data, name)[...] = saved[name]
    mujoco.mj_setState(env.model, env.data, saved["state"], MUJOCO_STATE)  # mj_forward has changed its warm start


def _fits(value: Any, now: Any) -> bool:
    """Whether a saved value may take the place of the one that is there, by its kind."""
    kind, other = _kind(now), _kind(value)
    types = [part.dtype.kind for part in (value, now) if isinstance(part, np.ndarray | np.generic)]
    if len(set(types)) > 1:
        return False
    if kind == other == "sequence":
        arrays = isinstance(value, np.ndarray) and isinstance(now, np.ndarray)
        return value.shape == now.shape if arrays else len(value) == len(now)
    return kind is not None and (kind == other or "nothing" in (kind, other))


def _kind(value: Any) -> str | None:
    if not _is_plain(value):
        return None
    kinds = {"nothing": type(None), "sequence": list | tuple | np.ndarray, "text": str, "mapping": dict}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "number")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str)
