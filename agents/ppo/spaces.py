"""Spaces that RecurrentPPO cannot learn in, told before a network is built for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize

from unroll.envs.spaces import in_words, is_simple, is_text
from unroll.errors import EnvError
from unroll.policies.actor_critic import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)

POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": RecurrentActorCriticPolicy,
    "CnnPolicy": RecurrentActorCriticCnnPolicy,
    "MultiInputPolicy": RecurrentMultiInputActorCriticPolicy,
}


def check_actions(space: spaces.Space) -> None:
    """Raise EnvError for actions that no distribution of Stable-Baselines3 fits, and that it does not refuse."""
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
        shape = " × ".join(map(str, space.nvec.shape))
        raise EnvError(f"actions are {shape} choices; choices in one row are needed, of MultiDiscrete with one axis")


def check_numbers(space: spaces.Space) -> None:
    """Raise EnvError for observations, or parts of a Dict, that no network takes: a Tuple, a Dict in a Dict, a text."""
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    for key, part in parts:
        is_number = isinstance(part, spaces.Box) and part.shape == ()  # without an axis that could be flattened
        if is_simple(part) and not is_number:
            continue
        if is_text(part):
            mend = "unroll.envs.make_vec_env leaves the texts of a Dict out"
        elif part.is_np_flattenable:
            mend = (
                "gymnasium.wrappers.FlattenObservation makes a row of numbers of it, as unroll.envs.make_env does, and "
                "gymnasium.wrappers.vector.FlattenObservation around a vector"
            )
        else:
            mend = "a wrapper must make numbers of it"
        what = f"{key} of the observation is" if key else "observations are"
        kind = "Box of shape ()" if is_number else type(part).__name__
        raise EnvError(f"{what} of {kind}, which no network takes; {mend}")


def check_policy_for(space: spaces.Space, policy: Any, policy_kwargs: dict[str, Any]) -> None:
    """Raise EnvError where one of our policies has no features extractor for these observations.

    A policy or a features extractor of the user's own, and images that are no bytes, are the user's to fit together.
    """
    names = {known: name for name, known in POLICIES.items()}
    own = policy_kwargs.get("features_extractor_class") is not None or not policy_kwargs.get("normalize_images", True)
    if policy not in names or own:
        return
    # MlpPolicy makes an image a row of numbers.
    wanted = policy_for(space)
    if names[policy] != wanted and (names[policy] != "MlpPolicy" or wanted == "MultiInputPolicy"):
        raise EnvError(f"{names[policy]} does not take observations of {in_words(space)}; {wanted} does")


def check_widths(observation: Any, space: spaces.Space) -> None:
    """Raise ValueError, as Stable-Baselines3 does, for rows of another width: statistics would widen them."""
    shown = observation if isinstance(observation, dict) else {"": observation}
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key in shown.keys() & parts.keys():
        part = parts[key]
        if isinstance(part, spaces.Box) and len(part.shape) == 1 and np.shape(shown[key])[-1:] != part.shape:
            raise ValueError(f"Unexpected observation shape {np.shape(shown[key])}; rows of {part.shape[0]} are needed")


def as_normalized(space: spaces.Space, normalizer: VecNormalize | None) -> spaces.Space:
    """Return the space with float32 for what VecNormalize normalises.

    It makes float32 of whole numbers, and leaves the space as it is: a buffer of the space's own dtype would cut them.
    """
    if normalizer is None or not normalizer.norm_obs:
        return space
    if isinstance(space, spaces.Dict):
        normal = normalizer.norm_obs_keys or []
        return spaces.Dict({key: _in_float32(part) if key in normal else part for key, part in space.items()})
    return _in_float32(space)


def as_drawn(space: spaces.Space) -> spaces.Space:
    """Return the space with float32 for continuous actions, as the policy draws them.

    Those of a Box of integers are rounded for the environment alone: a buffer of its dtype would cut them.
    """
    return _in_float32(space) if isinstance(space, spaces.Box) else space


def _in_float32(space: spaces.Space) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def policy_for(space: spaces.Space) -> str:
    """Return the name of the policy for observations of this space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
