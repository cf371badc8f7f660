"""Save the state of an environment as plain values.

With it an episode that was cut off goes on to the same bits.

The state of each wrapper and of the environment itself is the attributes that are numbers, text,
arrays or containers of such, its random generators, and the simulator's state of a MuJoCo
environment. Attributes are saved by name: renaming one in a class of ``unroll.envs`` makes
checkpoints of earlier versions unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from stable_baselines3.common.monitor import Monitor

from unroll.envs.faults import after, env_fault
from unroll.envs.observed import Misfit, check_flags, check_observation, check_reset
from unroll.envs.wrappers import own_copy
from unroll.errors import EnvError, UserError

# Modules whose classes have all of their state in such attributes.
KNOWN = (
    "gymnasium.envs.classic_control",
    "gymnasium.envs.mujoco",
    "gymnasium.wrappers.common",
    "gymnasium.wrappers.transform_observation",
    "unroll.envs",
)

MUJOCO_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
CACHE = "_cached_spec"  # of Gymnasium's wrappers: whoever asks for their spec fills it
# Rewards read these from the simulator's last step. mj_forward would compute newer ones from the
# state.
DERIVED = ("xpos", "xipos")


class EpisodeMonitor(Monitor):
    """Stable-Baselines3's Monitor with methods that save the environment within an episode.

    A vector's ``env_method("save_state")`` and ``env_method("load_state", …)`` reach it in any
    process. Its lists of episodes hold only the last one: with all that ever were, a long run would
    need more and more RAM.

    Whatever the environment raises becomes an EnvError that names it by ``vector_name``.
    """

    def __init__(self, env: gym.Env, vector_name: str = "the environment"):
        super().__init__(env)
        self.vector_name = vector_name
        self._begun = 0  # episodes
        self._space = env.observation_space

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        for episodes in (self.episode_returns, self.episode_lengths, self.episode_times):
            episodes.clear()
        self._begun += 1
        try:
            observation, info = check_reset(super().reset(**kwargs))
            check_observation(self._space, observation)
        except (Exception, SystemExit) as error:
            raise self._fault(error, f"at the reset before episode {self._begun}") from error
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        number = len(self.rewards) + 1
        try:
            observation, reward, terminated, truncated, info = super().step(action)
            check_flags(terminated, truncated)
            check_observation(self._space, observation)
        except (Exception, SystemExit) as error:
            where = f"in step {number} of episode {self._begun} of this process, {after(action)}"
            raise self._fault(error, where) from error
        if terminated or truncated:
            # The vector keeps it as the terminal observation while it resets the environment.
            observation = own_copy(observation)
        return observation, reward, terminated, truncated, info

    def _fault(self, error: BaseException, where: str) -> UserError:
        if isinstance(error, Misfit):
            return EnvError(f"{self.vector_name}: {error}, {where}")
        return error if isinstance(error, UserError) else env_fault(error, self.vector_name, where)

    def save_state(self) -> dict[str, Any] | None:
        """Return nested dicts, lists and tuples of numbers, text and arrays, or None."""
        state = save_env(self.env)
        if state is None:
            return None
        return {"env": state, "rewards": list(self.rewards), "needs_reset": self.needs_reset}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, in an environment made alike that has been reset once."""
        load_env(self.env, state["env"])
        self.rewards = state["rewards"]
        self.needs_reset = state["needs_reset"]


def save_env(env: gym.Env) -> list[dict[str, Any]] | None:
    """Return the state of each wrapper and of the environment; None if one is unknown.

    Known are Gymnasium's classic control and MuJoCo environments, the project's own, and any other
    environment that has the methods ``save_state() -> dict`` and ``load_state(dict)``.
    """
    layers = list(_layers(env))
    if not all(_has_hooks(layer) or _is_known(layer) for layer in layers):
        return None

    state = []
    for layer in layers:
        if _has_hooks(layer):
            state.append(layer.save_state())
        else:
            state.append(_save_layer(layer))
    return state


def load_env(env: gym.Env, state: list[dict[str, Any]]) -> None:
    """Put back a state that ``save_env`` returned.

    Raises:
        ValueError, KeyError, TypeError: it is the state of another environment.
    """
    for layer, values in zip(_layers(env), state, strict=True):
        if _has_hooks(layer):
            layer.load_state(values)
        else:
            _load_layer(layer, values)


def _layers(env: gym.Env) -> Iterator[Any]:
    """Iterate over the wrappers, the outermost first, and the environment itself."""
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
    values = {}
    generators = {}
    for key, value in vars(layer).items():
        if key == CACHE:
            continue
        if _is_plain(value):
            values[key] = value
        elif isinstance(value, np.random.Generator):
            generators[key] = value.bit_generator.state

    state: dict[str, Any] = {"values": values, "random": generators}
    if isinstance(layer, MujocoEnv):
        numbers = np.empty(mujoco.mj_stateSize(layer.model, MUJOCO_STATE))
        mujoco.mj_getState(layer.model, layer.data, numbers, MUJOCO_STATE)
        state["mujoco"] = {"state": numbers}
        for name in DERIVED:
            state["mujoco"][name] = getattr(layer.data, name).copy()
    return state


def _load_layer(layer: Any, state: dict[str, Any]) -> None:
    for key, value in state["values"].items():
        if key == CACHE:  # of checkpoints that were written with it
            continue
        if not _fits(value, vars(layer)[key]):
            raise ValueError(f"{type(layer).__name__}.{key} cannot be {str(value)[:40]}")
        setattr(layer, key, value)
    for key, value in state["random"].items():
        vars(layer)[key].bit_generator.state = value
    if isinstance(layer, MujocoEnv):
        _load_mujoco(layer, state["mujoco"])


def _load_mujoco(env: MujocoEnv, saved: dict[str, np.ndarray]) -> None:
    shapes = {"state": (mujoco.mj_stateSize(env.model, MUJOCO_STATE),)}
    for name in DERIVED:
        shapes[name] = getattr(env.data, name).shape
    # The state of another model must not reach the simulator.
    for name, shape in shapes.items():
        if saved[name].shape != shape or saved[name].dtype != np.float64:
            raise ValueError(f"the simulator's {name} is {saved[name].dtype} {saved[name].shape}, not float64 {shape}")

    # mj_forward computes all that follows from the state, such as contacts.
    mujoco.mj_setState(env.model, env.data, saved["state"], MUJOCO_STATE)
    mujoco.mj_forward(env.model, env.data)
    for name in DERIVED:
        getattr(env.data, name)[...] = saved[name]
    # mj_forward has changed the warm start of its solver, which is part of the state.
    mujoco.mj_setState(env.model, env.data, saved["state"], MUJOCO_STATE)


def _fits(value: Any, present: Any) -> bool:
    """Say whether a saved value may replace the present one, judged by its kind."""
    numpy = np.ndarray | np.generic
    if isinstance(value, numpy) and isinstance(present, numpy) and value.dtype.kind != present.dtype.kind:
        return False

    # None may become something, and something None; a sequence keeps its length, an array its shape.
    kind = _kind(present)
    other = _kind(value)
    if kind == other == "sequence":
        if isinstance(value, np.ndarray) and isinstance(present, np.ndarray):
            return value.shape == present.shape
        return len(value) == len(present)
    return kind is not None and (kind == other or "nothing" in (kind, other))


def _kind(value: Any) -> str | None:
    """Name the kind of a plain value; None for any other."""
    if not _is_plain(value):
        return None
    kinds = {"nothing": type(None), "sequence": list | tuple | np.ndarray, "text": str, "mapping": dict}
    for name, kind in kinds.items():
        if isinstance(value, kind):
            return name
    return "number"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str)
