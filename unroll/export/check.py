"""Check that an exported step computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from unroll.agents.common.step import Step

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # inputs by name → action and state

RESETS = 0.1  # the share of steps that begin an episode
TIES = 0.1  # the share of discrete actions that may be others


@torch.no_grad()
def difference(step: Step, run: Run, steps: int = 20, batch: int = 3, seed: int = 0) -> float:
    """Return the largest difference between ``step`` and ``run`` in actions and states.

    Both see the same random inputs and resets, and each carries its own state. The difference is relative where a
    value is above 1. Discrete actions differ where two of them are equally likely: with more than a tenth of them the
    result is infinite.
    """
    random = torch.Generator().manual_seed(seed)
    names = [port.name for port in step.inputs]
    ours: list[torch.Tensor] = [port.zeros(batch) for port in step.state]
    theirs = [part.numpy() for part in ours]
    largest = 0.0
    others = 0
    for t in range(steps):
        # Every episode begins at the first step.
        shown = [port.random(batch, random) for port in step.shown]
        probability = 1.0 if t == 0 else RESETS
        shown.append(torch.rand(batch, generator=random) < probability)

        action, *ours = step(*shown, *ours)
        given = [*(part.numpy() for part in shown), *theirs]
        chosen, *theirs = run(dict(zip(names, given, strict=True)))

        for own, other in zip(ours, theirs, strict=True):
            largest = _larger(largest, own, other)
        if action.is_floating_point():
            largest = _larger(largest, action, chosen)
        else:
            others += int((action.numpy() != chosen).sum())

    actions = steps * batch * max(1, int(np.prod(step.action.shape)))
    if others > TIES * actions:
        return float("inf")
    return largest


def _larger(largest: float, exact: torch.Tensor, found: np.ndarray) -> float:
    """Return ``largest`` or the difference between two arrays, whichever is larger; NaN if either is."""
    wanted = exact.numpy()
    relative = np.abs(wanted - found) / np.maximum(1.0, np.abs(wanted))
    return float(np.maximum(largest, relative.max(initial=0)))
