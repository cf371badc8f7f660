"""Gymnasium's vector environments, as Stable-Baselines3's algorithms take them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from unroll.envs.spaces import in_words
from unroll.errors import EnvError

DUMMY = "dummy_step"  # in the info of a step in which an environment was only reset


class GymnasiumVector(VecEnv):
    """A VecEnv around a ``gymnasium.vector.VectorEnv``, in any of its three ways to begin an episode anew.

    Stable-Baselines3 expects the new episode's first observation from the very step that ends the old one, and the last
    one in ``terminal_observation``. An environment with ``SAME_STEP`` gives both, and one with ``DISABLED`` is reset
    here at once. One with ``NEXT_STEP`` spends a step on it, whose action is ignored: its info holds DUMMY, and
    RecurrentPPO learns nothing from it.

    Tensors are copied to the host. Infos hold what the vector says of each environment, and Monitor's ``episode``, with
    returns before any wrapper of the VecEnv. What is said where an episode begins is in ``reset_infos``.

    Attributes and methods are those of the environments, in a SyncVectorEnv or an AsyncVectorEnv. Attributes that they
    have not, and those of another vector, are the vector's own.

    Raises:
        EnvError: the environment does not say how it begins anew, observes what is no array or dict of arrays, or is
            one of EnvPool's that gives fewer rows than it has environments, or in the order in which they are done.
    """

    def __init__(self, env: VectorEnv):
        self.env = env
        self.mode = env.metadata.get("autoreset_mode")
        if not isinstance(self.mode, AutoresetMode):
            raise EnvError(
                f"{type(env).__name__} does not say how it begins an episode anew: metadata['autoreset_mode'] is one "
                f"of {', '.join(f'AutoresetMode.{mode.name}' for mode in AutoresetMode)}, not {self.mode!r}"
            )
        if isinstance(env.single_observation_space, gym.spaces.Tuple):
            raise EnvError(f"{type(env).__name__} observes {in_words(env.single_observation_space)}: no row, no dict")
        inner = env.unwrapped
        check_whole(inner)
        self._environments = inner if isinstance(inner, SyncVectorEnv | AsyncVectorEnv) else None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.has_dummy_steps = self.mode is AutoresetMode.NEXT_STEP
        self._begin()

    def _begin(self) -> None:
        self._ended = np.zeros(self.num_envs, bool)  # whose next step is a dummy
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._began = time.monotonic()

    def reset(self) -> Any:
        # Of one number each environment makes its own seed, as Stable-Baselines3 does.
        own = {"options": self._options[0]} if self._options[0] else {}
        observations, said = self.env.reset(seed=self._seeds[0], **own)
        self.reset_infos = apart(said, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._begin()
        return on_host(observations)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset, the same for all environments.

        Raises:
            EnvError: they are a list.
        """
        if isinstance(options, list):
            raise EnvError(f"{type(self.env).__name__} resets all environments at once: options are a dict for all")
        super().set_options(options)

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        given, rewards, terminated, truncated, said = self.env.step(self._actions)
        observations = on_host(given)
        rewards = np.array(on_host(rewards), np.float32)
        terminated = np.asarray(on_host(terminated), bool)
        over = terminated | np.asarray(on_host(truncated), bool)
        dummy = self._ended
        self._returns += np.where(dummy, 0.0, rewards)
        self._lengths += ~dummy

        infos = apart(said, self.num_envs)
        for i in np.flatnonzero(dummy).tolist():
            self.reset_infos[i], infos[i] = infos[i], {DUMMY: True}
        for i in np.flatnonzero(over & ~dummy).tolist():
            if "final_info" in infos[i]:  # what is said beside it is of the new episode
                self.reset_infos[i], infos[i] = infos[i], dict(infos[i].pop("final_info"))
            if self.shows_last(said):
                last = said["final_obs"] if self.mode is AutoresetMode.SAME_STEP else observations
                infos[i]["terminal_observation"] = row(on_host(last), i)
            played = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": time.monotonic() - self._began}
            infos[i]["episode"] = played
            self._returns[i] = 0.0
            self._lengths[i] = 0
        for info, cut in zip(infos, (over & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut

        if self.mode is AutoresetMode.DISABLED and over.any():
            given, said = self.env.reset(options={"reset_mask": over})
            observations = on_host(given)
            begun = apart(said, self.num_envs)
            self.reset_infos = [
                new if ended else old for new, old, ended in zip(begun, self.reset_infos, over, strict=True)
            ]
        if self.has_dummy_steps:
            self._ended = over & ~dummy
            over = over | dummy  # an episode begins after it
        return observations, rewards, over, infos

    def shows_last(self, said: dict[str, Any]) -> bool:
        """Say whether the last observation of an episode is shown; Gymnasium's vectors all do."""
        return True

    def close(self) -> None:
        self.env.close()

    def has_attr(self, attr_name: str) -> bool:
        return self._are_theirs(attr_name) or hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if self._environments is not None and self._are_theirs(attr_name):
            values = self._environments.call("get_wrapper_attr", attr_name)  # their get_attr() would call a method
        else:
            values = (getattr(self.env, attr_name),) * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        if self._environments is not None and self._are_theirs(attr_name):
            self._check_all(indices, attr_name)
            self._environments.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        self._check_all(indices, f"{method_name}()")
        assert self._environments is not None
        answers = list(self._environments.call(method_name, *method_args, **method_kwargs))
        if method_name == "action_masks":
            # The action of a dummy step is ignored, and an environment that is over may allow none.
            for i in np.flatnonzero(self._ended).tolist():
                answers[i] = all_allowed(self.action_space)
        return answers

    def _are_theirs(self, name: str) -> bool:
        """Say whether all environments have an attribute. An AsyncVectorEnv that is asked for another one is lost."""
        return self._environments is not None and all(self._environments.call("has_wrapper_attr", name))

    def _check_all(self, indices: Any, what: str) -> None:
        """Raise EnvError unless the environments can be reached, and all of them are meant."""
        if self._environments is None or len(list(self._get_indices(indices))) != self.num_envs:
            raise EnvError(f"{type(self.env).__name__} steps all environments at once: no {what} of one of them")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        # Infos tell what Monitor's do. So evaluate_policy counts episodes by them, and a dummy step as none.
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def on_host(value: Any) -> Any:
    """Return arrays, a dict of arrays or tensors as NumPy's arrays."""
    if isinstance(value, dict):
        return {key: on_host(part) for key, part in value.items()}
    if hasattr(value, "cpu"):
        value = value.detach().cpu()
    return np.asarray(value)


def row(values: Any, i: int) -> Any:
    """Return what environment ``i`` observes: of an array, of a dict of arrays, or of an array of objects."""
    if isinstance(values, dict):
        return {key: row(part, i) for key, part in values.items()}
    value = values[i]
    if isinstance(value, dict):
        return {key: np.array(part) for key, part in value.items()}
    return np.array(value)


def apart(said: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Return what a vector's info says of each of its ``n`` environments.

    Gymnasium has beside each ``key`` a ``_key``, which says for which environments it was given. Without it an array of
    n rows is given for all, as by EnvPool.

    Raises:
        EnvError: it is no dict.
    """
    if not isinstance(said, dict):
        raise EnvError(
            f"the vector's infos are a {type(said).__name__}, where one dict for all environments is wanted: leave "
            "DictInfoToList out"
        )
    infos: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, values in said.items():
        given = said.get(f"_{key}")
        is_array = isinstance(values, np.ndarray) or hasattr(values, "cpu")
        if given is None and not key.startswith("_") and is_array and values.ndim and len(values) == n:
            given = np.ones(n, bool)
        if key == "final_obs" or given is None or np.shape(given) != (n,):
            continue
        of_each = apart(values, n) if isinstance(values, dict) else on_host(values)
        for i in np.flatnonzero(on_host(given)).tolist():
            infos[i][key] = of_each[i]
    return infos


def check_whole(env: Any) -> None:
    """Raise EnvError for a vector of EnvPool whose rows are not those of all its environments, in their order."""
    config = getattr(env, "config", None)
    if not (isinstance(config, dict) and {"num_envs", "batch_size", "max_num_players"} <= config.keys()):
        return
    rows = config["batch_size"]
    players = config["max_num_players"]
    if rows not in (0, env.num_envs):
        raise EnvError(
            f"{type(env).__name__} gives {rows} of its {env.num_envs} environments in a step: leave batch_size out"
        )
    if players != 1:
        raise EnvError(f"{type(env).__name__} has {players} players: a policy plays for one, max_num_players=1")


def all_allowed(space: gym.Space) -> np.ndarray:
    """Return the action mask that forbids nothing, bool [mask_width]."""
    choices = 2 if isinstance(space, gym.spaces.MultiBinary) else 1
    return np.ones(choices * flatdim(space), bool)


def warn_of_monitor(env: Any) -> None:
    """Say so where a VecMonitor is around a vector with dummy steps, which it takes for episodes."""
    if is_vecenv_wrapped(env, VecMonitor) and getattr(env.unwrapped, "has_dummy_steps", False):
        warnings.warn(
            "VecMonitor counts the steps in which NEXT_STEP only resets an environment as episodes of return 0, in its "
            "file and in evaluate_policy: leave it out, GymnasiumVector records episodes itself",
            stacklevel=2,
        )


def dummy_steps(infos: Sequence[dict[str, Any]]) -> np.ndarray:
    """Say in which environments a step was a dummy, [n_envs]."""
    return np.array([DUMMY in info for info in infos])
