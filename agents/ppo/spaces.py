"""Spaces that RecurrentPPO cannot learn in, told before a network is built for them."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from unroll.errors import EnvError

SMALLEST_IMAGE = 36  # pixels a side that leave one for the last of NatureCNN's convolutions (Mnih et al. 2015)


def check_actions(space: spaces.Space) -> None:
    """Raise EnvError for actions that no distribution of Stable-Baselines3 fits, and that it does not refuse."""
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
        shape = " × ".join(map(str, space.nvec.shape))
        raise EnvError(f"actions are {shape} choices; choices in one row are needed, of MultiDiscrete with one axis")


def check_observations_of(space: spaces.Space, policy_kwargs: dict[str, Any]) -> None:
    """Raise EnvError for images that are too small for the convolutions that would look at them."""
    if policy_kwargs.get("features_extractor_class") is not None:
        return
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    for key, part in parts:
        if not is_image_space(part):
            continue
        sides = part.shape[1:]  # type: ignore[index]
        if min(sides) < SMALLEST_IMAGE:
            what = f"{key} is" if key else "observations are"
            raise EnvError(
                f"{what} an image of {' × '.join(map(str, sides))} pixels, and its convolutions need "
                f"{SMALLEST_IMAGE} × {SMALLEST_IMAGE}; a wrapper such as gymnasium's FlattenObservation makes it a row"
            )
