"""minGRU of "Were RNNs All We Needed?" (Feng et al. 2024, arXiv 2410.01201, section 3.1), in linear space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.backbones.backbone import Mixer, State, require
from policies.backbones.scan import linear_scan


class MinGRU(Mixer):
    """z = σ(W_z x);  h̃ = g(W_h x);  h[t] = (1 - z)·h[t-1] + z·h̃;  y = W_o h.

    The state is h [B, expansion·d_model]. ``memory_span``: the channels' gates start so that they forget over 2 to this
    many steps, spaced evenly in the logarithm; with gates that start half open, minGRU stays at chance on memory tasks.
    """

    paper = "Feng et al. 2024, arXiv 2410.01201"

    def __init__(self, d_model: int, expansion: float = 1.0, memory_span: float = 100.0):
        super().__init__()
        self.d_inner = int(expansion * d_model)
        require(self.d_inner >= 1, f"expansion {expansion} leaves minGRU without a channel")
        self.gate_and_candidate = nn.Linear(d_model, 2 * self.d_inner)
        self.out = nn.Linear(self.d_inner, d_model)
        with torch.no_grad():
            self.gate_and_candidate.bias[: self.d_inner] = -remember_bias(self.d_inner, memory_span)

    def initial_state(self, batch_size: int) -> State:
        return self.out.weight.new_zeros(batch_size, self.d_inner)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        keep, update = self._gates(x)
        h = linear_scan(keep, update, state, reset)
        return self.out(h.to(x.dtype)), h[:, -1]

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        keep, update = self._gates(x)
        if reset is not None:
            keep = keep * (~reset)[:, None].to(keep.dtype)
        h = torch.addcmul(update, keep, state)
        return self.out(h.to(x.dtype)), h

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate = self.gate_and_candidate(x).chunk(2, -1)
        # 1 - z as σ(-k): no digits are lost where z is near 1
        return torch.sigmoid(-gate), torch.sigmoid(gate) * positive(candidate)


def positive(x: Tensor) -> Tensor:
    """g(x) = x + 0.5 where x ≥ 0, else σ(x) (the paper's appendix B), written without a branch."""
    return F.relu(x) + torch.sigmoid(-F.relu(-x))


def remember_bias(channels: int, span: float) -> Tensor:
    """Biases u of a retention gate σ(u) that decays over 2 … ``span`` steps: σ(u) = 1 - 1/τ, log τ evenly spaced.
    0 where ``span`` is 0: the gates start half open, as the papers have them.

    A deterministic form of the chrono initialisation (Tallec & Ollivier 2018, arXiv 1804.11188).
    """
    require(span == 0 or span >= 2, f"memory_span must be at least 2 steps, or 0 for none, not {span}")
    if span == 0:
        return torch.zeros(channels)
    return torch.linspace(0, math.log(span - 1), channels)  # σ(u) = 1 - 1/τ where u = log(τ - 1)
