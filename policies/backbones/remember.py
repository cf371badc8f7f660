"""Initial gate biases that make a memory remember."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from unroll.policies.backbones.backbone import require

Signed = Literal[False, True, "some"]

# Of so many channels one alternates where there are signed gates, and forgets over this many steps at first.
FEW = 16
ALTERNATING = (1.2, 3.0)


def remember_bias(channels: int, span: float, signed: Signed = False) -> Tensor:
    """Return biases u of a retention gate σ(u), so that the channels forget over 2 to ``span`` steps.

    A channel that forgets over τ steps has σ(u) = 1 - 1/τ, which is u = log(τ - 1); these are evenly spaced over the
    channels. With ``span`` 0 they are 0: the gates start half open, as in the papers. This is a deterministic form of
    the chrono initialisation (Tallec & Ollivier 2018, arXiv 1804.11188).

    With ``signed`` gates the weight of the memory starts at 1/τ - 1 in the last sixteenth of the channels. They
    alternate, as the velocity v must be had from positions x that are all that is seen: where it changes evenly within
    a step, v[t] = -v[t-1] + 2·(x[t] - x[t-1]), which no weight of v[t-1] above 0 computes. ``some``: that weight is
    -σ(u), and σ(u) elsewhere. True: it is 2σ(u) - 1 in all channels, so that 1 - 1/τ is u = log(2τ - 1).
    """
    check_span(span)
    if span == 0:
        return torch.zeros(channels)
    turned = channels // FEW if signed else 0
    # τ = 2 is log 1 = 0
    bias = torch.linspace(0, math.log(span - 1), channels - turned)
    if not signed:
        return bias
    first, last = (math.log(steps) for steps in ALTERNATING)
    steps = torch.linspace(first, last, turned).exp()
    if signed == "some":
        return torch.cat([bias, (steps - 1).log()])
    return torch.cat([(2 * bias.exp() + 1).log(), -(2 * steps - 1).log()])


def check_span(span: float) -> None:
    """Raise BackboneError unless ``span`` is a valid memory_span."""
    require(span == 0 or span >= 2, f"memory_span must be at least 2 steps, or 0 for none, not {span}")
