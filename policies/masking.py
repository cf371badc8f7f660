"""Action masks: an action that the environment does not allow now gets no probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unroll.errors import EnvError

# The logit of a forbidden action is -NEVER. exp(-1e8) is 0; and 0 · 1e8, as in an entropy, is 0, where 0 · ∞ is NaN.
NEVER = 1e8

NO_METHOD = "action_masks is an attribute of the environment; it must be a method, def action_masks() without @property"


def mask_width(space: spaces.Space) -> int:
    """Count the booleans that ``action_masks()`` of an environment with this action space returns.

    They are those of sb3-contrib's MaskablePPO: one for each action of a Discrete, for each action of each part of a
    MultiDiscrete one after the other, and for 0 and 1 of each bit of a MultiBinary.

    Raises:
        EnvError: Actions of this kind cannot be masked.
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.MultiBinary):
        return 2 * int(np.prod(space.shape))
    raise EnvError(f"actions of {space} cannot be masked: Discrete, MultiDiscrete or MultiBinary is needed")


def check_masks(masks: Any, space: spaces.Space, n_envs: int) -> np.ndarray:
    """Return the masks as bool [n_envs, mask_width].

    They are arrays or lists, one for each environment, true where allowed. 1 and 0 may stand for true and false.

    Raises:
        EnvError: The masks have another size or hold what is no boolean, an environment allows no action at all, or
            actions of this kind cannot be masked.
    """
    width = mask_width(space)
    try:
        rows = np.asarray(masks).reshape(n_envs, -1)
    except ValueError:  # of different sizes
        rows = np.stack([_read_mask(mask, space, i) for i, mask in enumerate(masks)])
    if rows.dtype != bool or rows.shape != (n_envs, width):
        rows = np.stack([_read_mask(row, space, i) for i, row in enumerate(rows)])
    if len(rows) != n_envs:
        raise EnvError(f"{len(rows)} action masks were given for {n_envs} environments")

    # every part of an action must have one choice at least
    sizes = [width]
    if isinstance(space, spaces.MultiDiscrete):
        sizes = space.nvec.flatten().tolist()
    elif isinstance(space, spaces.MultiBinary):
        sizes = [2] * (width // 2)
    firsts = np.cumsum([0, *sizes[:-1]])
    legal = np.logical_or.reduceat(rows, firsts, axis=1).all(1)
    if not legal.all():
        raise EnvError(f"action_masks() of environment {int(np.argmin(legal))} allows no action")
    return rows


def _read_mask(mask: Any, space: spaces.Space, i: int) -> np.ndarray:
    """The mask of environment i as bool [mask_width]."""
    width = mask_width(space)
    what = f"action_masks() of environment {i}"
    try:
        values = np.asarray(mask).reshape(-1)
    except ValueError:  # parts of different sizes
        raise EnvError(f"{what} gives several rows; one row of {width} booleans is needed for {space}") from None
    if values.dtype.kind not in "biuf":
        raise EnvError(f"{what} gives {values[0]!r}; one row of {width} booleans is needed for {space}")
    if len(values) != width:
        raise EnvError(f"{what} gives {len(values)} values, {space} has {width}")
    if np.isneginf(values).any():
        raise EnvError(
            f"{what} holds -inf, as masks that are added to logits do; true is needed where an action is allowed, "
            "false elsewhere"
        )
    odd = values[(values != 0) & (values != 1)]
    if len(odd):
        raise EnvError(f"{what} holds {odd[0]}; true or 1 is needed where an action is allowed, false or 0 elsewhere")
    return values.astype(bool)


def mask_logits(logits: Tensor, masks: Tensor, space: spaces.Space) -> Tensor:
    """Apply ``masks`` bool [N, mask_width] to the logits [N, …] of a policy's distribution."""
    if not isinstance(space, spaces.MultiBinary):
        return torch.where(masks, logits, -NEVER)
    # a Bernoulli has one logit, that of 1 against 0
    zero, one = masks.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.where(one, torch.where(zero, logits, NEVER), -NEVER)
