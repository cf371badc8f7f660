"""Does what was written compute what PyTorch computes?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from unroll.agents.common.step import Step

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # inputs by name → action and state


@torch.no_grad()
def difference(step: Step, run: Run, steps: int = 20, batch: int = 3, seed: int = 0) -> float:
    """The largest difference between ``step`` and ``run`` in actions and states, over steps of random inputs and
    resets; both carry their own state. It is relative where a value is above 1.

    An action of which there are only so many may differ where two are equally likely: one in ten is let pass.
    """
    random = torch.Generator().manual_seed(seed)
    ours: list[torch.Tensor] = [port.zeros(batch) for port in step.state]
    theirs = [part.numpy() for part in ours]
    largest, others = 0.0, 0
    for t in range(steps):
        shown = [port.random(batch, random) for port in step.shown]
        shown.append(torch.rand(batch, generator=random) < (0.1 if t else 1.0))
        action, *ours = step(*shown, *ours)
        names = [port.name for port in step.inputs]
        chosen, *theirs = run(dict(zip(names, [*(part.numpy() for part in shown), *theirs], strict=True)))
        pairs = list(zip(ours, theirs, strict=True))
        if action.is_floating_point():
            pairs.append((action, chosen))
        else:
            others += int((action.numpy() != chosen).sum())
        for a, b in pairs:
            relative = np.abs(a.numpy() - b) / np.maximum(1.0, np.abs(a.numpy()))
            largest = float(np.maximum(largest, relative.max(initial=0)))  # NaN stays
    return largest if others <= 0.1 * steps * batch * max(1, int(np.prod(step.action.shape))) else float("inf")
