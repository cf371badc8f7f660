"""Action masks: an action that the environment does not allow now gets no probability."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

# The logit of a forbidden action is -NEVER. exp(-1e8) is 0; and 0 · 1e8, as in an entropy, is 0, where 0 · ∞ is NaN.
NEVER = 1e8


def mask_width(space: spaces.Space) -> int:
    """Count the booleans that ``action_masks()`` of an environment with this action space returns.

    They are those of sb3-contrib's MaskablePPO: one for each action of a Discrete, for each action of each part of a
    MultiDiscrete one after the other, and for 0 and 1 of each bit of a MultiBinary.

    Raises:
        ValueError: Actions of this kind cannot be masked.
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.MultiBinary):
        return 2 * int(np.prod(space.shape))
    raise ValueError(f"actions of {space} cannot be masked: Discrete, MultiDiscrete or MultiBinary is needed")


def check_masks(masks: np.ndarray, space: spaces.Space, n_envs: int) -> np.ndarray:
    """Return the masks as bool [n_envs, mask_width].

    Raises:
        ValueError: The masks have another size, or an environment allows no action at all.
    """
    width = mask_width(space)
    masks = np.asarray(masks, bool).reshape(n_envs, -1)
    if masks.shape[1] != width:
        raise ValueError(f"action_masks() gives {masks.shape[1]} values, {space} has {width}")

    # every part of an action must have one choice at least
    sizes = [width]
    if isinstance(space, spaces.MultiDiscrete):
        sizes = space.nvec.flatten().tolist()
    elif isinstance(space, spaces.MultiBinary):
        sizes = [2] * (width // 2)
    firsts = np.cumsum([0, *sizes[:-1]])
    legal = np.logical_or.reduceat(masks, firsts, axis=1).all(1)
    if not legal.all():
        raise ValueError(f"action_masks() of environment {int(np.argmin(legal))} allows no action")
    return masks


def mask_logits(logits: Tensor, masks: Tensor, space: spaces.Space) -> Tensor:
    """Apply ``masks`` bool [N, mask_width] to the logits [N, …] of a policy's distribution."""
    if not isinstance(space, spaces.MultiBinary):
        return torch.where(masks, logits, -NEVER)
    # a Bernoulli has one logit, that of 1 against 0
    zero, one = masks.view(len(masks), -1, 2).unbind(-1)
    return torch.where(one, torch.where(zero, logits, NEVER), -NEVER)
