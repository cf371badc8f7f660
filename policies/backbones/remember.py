"""Initial gate biases that make a memory remember."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unroll.policies.backbones.backbone import require

# Of so many channels one alternates, if its gates are signed, and forgets over between two numbers of steps at first.
FEW = 16
ALTERNATING = (1.2, 3.0)


def remember_bias(channels: int, span: float, signed: int = 0) -> Tensor:
    """Return biases u of a retention gate σ(u), so that the channels forget over 2 to ``span`` steps.

    A channel that forgets over τ steps has σ(u) = 1 - 1/τ, which is u = log(τ - 1); these are evenly spaced over the
    channels. With ``span`` 0 they are 0: the gates start half open, as in the papers. This is a deterministic form of
    the chrono initialisation (Tallec & Ollivier 2018, arXiv 1804.11188).

    In the last ``signed`` channels it is 2σ(u) - 1 that is 1 - 1/τ, which is u = log(2τ - 1). In the last sixteenth of
    all channels, if they are signed, it is 1/τ - 1: they alternate, as the velocity v must be had from positions x that
    are all that is seen. Where it changes evenly within a step, v[t] = -v[t-1] + 2·(x[t] - x[t-1]), which no weight of
    v[t-1] above 0 computes.
    """
    check_span(span)
    if span == 0:
        return torch.zeros(channels)
    turned = min(signed, channels // FEW)
    # τ = 2 is log 1 = 0
    bias = torch.linspace(0, math.log(span - 1), channels - turned)
    bias[channels - signed :] = (2 * bias[channels - signed :].exp() + 1).log()
    first, last = (math.log(steps) for steps in ALTERNATING)
    alternating = torch.linspace(first, last, turned).exp()
    return torch.cat([bias, -(2 * alternating - 1).log()])


def check_span(span: float) -> None:
    """Raise BackboneError unless ``span`` is a valid memory_span."""
    require(span == 0 or span >= 2, f"memory_span must be at least 2 steps, or 0 for none, not {span}")
