"""Environment wrappers that put everything into the observation on which a policy acts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, TransformObservation

from unroll.envs.datasets.images import numbers, pack_one, parts_of, row_bytes
from unroll.envs.observed import Misfit, check_observation, check_reset
from unroll.errors import EnvError


def own_copy(observation: Any) -> Any:
    """Copy the arrays of an observation: an environment may change those that it gave in its next step."""
    if isinstance(observation, dict):
        return {key: own_copy(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(own_copy(part) for part in observation)
    if isinstance(observation, list):
        return [own_copy(part) for part in observation]
    return observation.copy() if isinstance(observation, np.ndarray) else observation


def name_of(env: gym.Env) -> str:
    """Return the id of an environment, or the name of its class."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


class CheckedFlatten(FlattenObservation):
    """A wrapper that makes one row of the observation, which must be what its space says.

    Gymnasium's own would show state -1 as the last one, and 300 as uint8 44.
    """

    def observation(self, observation: Any) -> np.ndarray:
        check_observation(self.env.observation_space, observation)
        return super().observation(observation)


class OtherForm(TransformObservation):
    """A wrapper of ``make_env`` that shows the observation in another form. An environment may bring its like."""


class ImageRows(gym.ObservationWrapper):
    """A wrapper that shows an observation that holds images as one row of bytes, as a dataset holds it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        parts = parts_of(env.observation_space)
        assert parts is not None
        self.parts = parts
        self.observation_space = gym.spaces.Box(0, 255, (row_bytes(parts),), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        check_observation(self.env.observation_space, observation)
        row = pack_one(self.env.observation_space, observation)
        if not np.isfinite(numbers(self.parts, row[None])).all():
            raise Misfit("the observation is not finite")
        return row


def image_rows(env: gym.Env) -> gym.Env:
    """Let the environment show images as a dataset holds them; any other observation stays as it is."""
    if parts_of(env.observation_space) is None:
        return env
    return ImageRows(env)


class PreviousAction:
    """A converter from an action to how the next step shows it, a member of ``space``.

    Discrete actions, one or several, are counted from 0 as policies count them, whatever the
    ``start`` of their space. They get one class more, the last, for "none yet" at an episode's
    start. Others are zeros then.

    Raises:
        EnvError: the environment's actions are of another kind.
    """

    def __init__(self, actions: gym.Space, name: str):
        self._start: Any = 0
        if isinstance(actions, gym.spaces.Discrete):
            self.space: gym.Space = gym.spaces.Discrete(int(actions.n) + 1)
            self._none: Any = np.int64(actions.n)
            self._start = actions.start
        elif isinstance(actions, gym.spaces.MultiDiscrete):
            self.space = gym.spaces.MultiDiscrete(actions.nvec + 1)
            self._none = actions.nvec.astype(self.space.dtype)
            self._start = actions.start
        elif isinstance(actions, gym.spaces.MultiBinary):
            self.space = actions
            self._none = np.zeros(actions.shape, actions.dtype)
        elif isinstance(actions, gym.spaces.Box):
            # The zeros of "none yet" are within the bounds.
            low = np.minimum(actions.low, 0).astype(np.float32)
            high = np.maximum(actions.high, 0).astype(np.float32)
            self.space = gym.spaces.Box(low, high, dtype=np.float32)
            self._none = np.zeros(actions.shape, np.float32)
        else:
            raise EnvError(f"{name}: an action of {type(actions).__name__} cannot be shown in the step after it")

    def none(self) -> Any:
        """Return what is shown at an episode's start."""
        return self._none.copy()  # whoever keeps an observation may change it

    def show(self, action: Any) -> Any:
        """Return what is shown after `action`."""
        return np.array(action, self.space.dtype) - self._start


class PreviousStep(gym.Wrapper):
    """A wrapper that shows the action and the reward of the step before.

    A policy that has to find out how its world works needs them. The observation is a Dict: the
    environment's own under "observation" (its own keys, if it is a Dict already), "previous_action"
    (see :class:`PreviousAction`) and "previous_reward" (1,), 0 at an episode's start.
    """

    def __init__(self, env: gym.Env, action: bool = True, reward: bool = True):
        super().__init__(env)
        space = env.observation_space
        self._is_dict = isinstance(space, gym.spaces.Dict)
        self._action = PreviousAction(env.action_space, name_of(env)) if action else None
        self._reward = reward

        spaces = {"observation": space}
        if isinstance(space, gym.spaces.Dict):
            spaces = dict(space.spaces)
        if self._action:
            spaces["previous_action"] = self._action.space
        if reward:
            spaces["previous_reward"] = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = gym.spaces.Dict(spaces)

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = check_reset(self.env.reset(**kwargs))
        return self._dict(observation, self._action and self._action.none(), 0.0), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        shown = self._action and self._action.show(action)  # before the environment may change it
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._dict(observation, shown, reward), reward, terminated, truncated, info

    def _dict(self, observation: Any, action: Any, reward: Any) -> dict[str, Any]:
        shown = {"observation": own_copy(observation)}
        if self._is_dict:
            shown = own_copy(observation)
        if self._action:
            shown["previous_action"] = action
        if self._reward:
            shown["previous_reward"] = np.array([reward], np.float32)
        return shown


class ReturnToGo(gym.Wrapper):
    """A wrapper that shows a decision policy what its training sequences hold.

    The Dict of ``SEQUENCE_KEYS`` holds ``observation`` (D,), a row as a dataset holds it, ``previous_action`` (see
    :class:`PreviousAction`), ``return_to_go`` (1,), which is the return asked for minus the rewards
    so far, and ``timestep`` (1,). ``reset(options={"target_return": …})`` asks for another return.
    """

    def __init__(self, env: gym.Env, target_return: float = 0.0):
        super().__init__(env)
        self.target_return = target_return  # what reset() asks for by default
        self._action = PreviousAction(env.action_space, name_of(env))
        self.observation_space = gym.spaces.Dict(
            observation=env.observation_space,
            previous_action=self._action.space,
            return_to_go=gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
            timestep=gym.spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        options = dict(options or {})
        # The option is for this wrapper alone: environments may refuse options that they do not know.
        self._return_to_go = float(options.pop("target_return", self.target_return))
        self._timestep = 0
        self._previous_action = self._action.none()
        observation, info = check_reset(self.env.reset(seed=seed, options=options or None))
        return self._dict(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        self._previous_action = self._action.show(action)  # before the environment may change it
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._return_to_go -= float(reward)
        self._timestep += 1
        return self._dict(observation), reward, terminated, truncated, info

    def _dict(self, observation: Any) -> dict[str, Any]:
        return {
            "observation": own_copy(observation),
            "previous_action": self._previous_action,
            "return_to_go": np.array([self._return_to_go], np.float32),
            "timestep": np.array([self._timestep], np.int64),
        }


class FlatActions(gym.ActionWrapper):
    """A wrapper that takes a continuous action of any shape as one row, as a dataset holds it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self._shape = space.shape
        self.action_space = gym.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype.type)

    def action(self, action: Any) -> Any:
        return np.reshape(action, self._shape)


def flat_actions(env: gym.Env) -> gym.Env:
    """Let the environment take its actions as a dataset holds them."""
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and len(space.shape) != 1:
        return FlatActions(env)
    return env


class ClippedActions(gym.ActionWrapper):
    """A wrapper that cuts continuous actions at the bounds of the environment."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self._low = space.low
        self._high = space.high

    def action(self, action: Any) -> Any:
        return np.minimum(np.maximum(action, self._low), self._high)  # np.clip takes three times as long


def clipped_actions(env: gym.Env) -> gym.Env:
    """Let the environment be given no action beyond its bounds: those of the data may be wider."""
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and np.dtype(space.dtype).kind == "f":
        return ClippedActions(env)
    return env


class WholeActions(ClippedActions):
    """A wrapper that takes continuous actions for a Box of integers, which is given the nearest ones."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(self._low, self._high, dtype=np.float32)

    def action(self, action: Any) -> Any:
        return super().action(np.rint(action)).astype(self._low.dtype)


def whole_actions(env: gym.Env) -> gym.Env:
    """Let the environment be given whole numbers where it takes no others, whatever an agent chooses."""
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and np.dtype(space.dtype).kind in "iu":
        return WholeActions(env)
    return env


def for_decisions(env: gym.Env, target_return: float) -> gym.Env:
    """Put around an environment what a decision agent sees, and let it act as its dataset does."""
    # The action before is shown as the data hold it: whole numbers, and what an agent chose beyond the bounds.
    return whole_actions(ReturnToGo(flat_actions(clipped_actions(image_rows(env))), target_return))


class FromZero(gym.ActionWrapper):
    """A wrapper that takes discrete actions counted from 0, for agents that know no others."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.Discrete)
        self._start = space.start
        self.action_space = gym.spaces.Discrete(int(space.n))

    def action(self, action: Any) -> Any:
        return self._start + action


def from_zero(env: gym.Env) -> gym.Env:
    """Let the environment take its discrete actions counted from 0."""
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete) and space.start != 0:
        return FromZero(env)
    return env


class WithoutInfo(gym.Wrapper):
    """A wrapper that keeps the environment's infos from an agent, which takes some of their keys for others' words.

    An ``episode`` of the environment's own would be taken for Monitor's.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {}


class NoisyActions(gym.ActionWrapper):
    """Disturbs what the agent chose; the recording holds what was done."""

    def __init__(self, env: gym.Env, noise: float):
        super().__init__(env)
        self.noise = noise
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # an episode's noise depends on its seed alone
            self._random = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        space = self.env.action_space
        if isinstance(space, gym.spaces.Discrete):
            if self._random.random() >= self.noise:
                return action
            allowed = self._allowed(space)
            return allowed[self._random.integers(len(allowed))]
        assert isinstance(space, gym.spaces.Box)
        error = self._random.normal(scale=self.noise, size=space.shape) * (space.high - space.low) / 2
        noisy = np.clip(action + error, space.low, space.high)
        return np.rint(noisy).astype(space.dtype) if space.dtype.kind in "iu" else noisy.astype(np.float32)

    def _allowed(self, space: gym.spaces.Discrete) -> np.ndarray:
        """The actions that the environment does not forbid now."""
        if not self.env.has_wrapper_attr("action_masks"):
            return space.start + np.arange(space.n)
        masks = np.asarray(self.env.get_wrapper_attr("action_masks")())
        if masks.shape != (space.n,) or not np.isin(masks, (0, 1)).all() or not masks.any():
            raise EnvError(f"{name_of(self)}: action_masks() gives {masks}; {space.n} of true or false are needed")
        return space.start + np.flatnonzero(masks)
