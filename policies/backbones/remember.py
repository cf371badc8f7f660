"""How gates start: biased to remember."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unroll.policies.backbones.backbone import require


def remember_bias(channels: int, span: float) -> Tensor:
    """Biases u of a retention gate σ(u) that decays over 2 … ``span`` steps: σ(u) = 1 - 1/τ, log(τ - 1) evenly spaced.
    0 where ``span`` is 0: the gates start half open, as the papers have them.

    A deterministic form of the chrono initialisation (Tallec & Ollivier 2018, arXiv 1804.11188).
    """
    check_span(span)
    if span == 0:
        return torch.zeros(channels)
    return torch.linspace(0, math.log(span - 1), channels)  # σ(u) = 1 - 1/τ where u = log(τ - 1)


def check_span(span: float) -> None:
    """Raise BackboneError unless ``span`` is a memory_span."""
    require(span == 0 or span >= 2, f"memory_span must be at least 2 steps, or 0 for none, not {span}")
