"""Mamba's selective state space, S6 (Gu & Dao 2023, arXiv 2312.00752), in PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Mixer, State, forget, require
from unroll.policies.backbones.conv import CausalConv
from unroll.policies.backbones.layers import Linear, linear
from unroll.policies.backbones.remember import check_span
from unroll.policies.backbones.selective import selective_scan, selective_step

# As published, Δ starts between 0.001 and 0.1 (section 3.6).
PUBLISHED_SPAN = 1000
FASTEST = 0.1


class Mamba(Mixer):
    """u = silu(conv(W_u x)), and from u: Δ = softplus(W_Δ u), B, C;
    h[t] = exp(Δ A)·h[t-1] + Δ B u, y = W_o((C·h + D u)·silu(W_z x)).

    Args:
        expansion: Channels of u per channel of x.
        d_state: States of each channel. A starts at -1 … -d_state.
        conv: Steps of the convolution.
        memory_span: Δ starts at 1/memory_span to 0.1 (or at 1/memory_span, if that is more), at random, evenly in the
            logarithm. A channel's slowest state forgets over 1/Δ steps. 0 is as published, which is 1000.

    The state is (the convolution's state, h [B, expansion·d_model, d_state]).
    """

    paper = "Gu & Dao 2023, arXiv 2312.00752"

    def __init__(
        self,
        d_model: int,
        expansion: float = 2.0,
        d_state: int = 16,
        conv: int = 4,
        memory_span: float = 0.0,
    ):
        super().__init__()
        self.d_inner = round(expansion * d_model)
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        require(self.d_inner >= 1, f"expansion {expansion} leaves no channel")
        require(d_state >= 1, f"d_state must be at least 1, not {d_state}")
        check_span(memory_span)
        self.input = Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv = CausalConv(self.d_inner, conv)
        # Δ is made through dt_rank channels
        self.select = Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt = Linear(self.dt_rank, self.d_inner)
        # A = -exp(log_a) starts at -1 … -d_state for every channel (S4D-Real)
        self.log_a = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.skip = nn.Parameter(torch.ones(self.d_inner))
        self.out = Linear(self.d_inner, d_model, bias=False)
        self._start_steps(memory_span)

    def _start_steps(self, memory_span: float) -> None:
        """Draw the initial Δ, and choose the bias for which softplus gives it."""
        nn.init.uniform_(self.dt.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        slowest = 1 / (memory_span or PUBLISHED_SPAN)
        with torch.no_grad():
            dt = torch.empty(self.d_inner).uniform_(math.log(slowest), math.log(max(slowest, FASTEST))).exp()
            # softplus⁻¹(Δ) = log(e^Δ - 1) = Δ + log(1 - e^-Δ)
            self.dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def initial_state(self, batch_size: int) -> State:
        h = self.out.weight.new_zeros(batch_size, self.d_inner, self.d_state)
        return self.conv.initial_state(batch_size), h

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        recent = None
        h = None
        if state is not None:
            recent, h = state

        # z is the gate of the output, u goes through the convolution and the scan
        u, z = self.input(x).chunk(2, -1)
        u, recent = self.conv(u, recent, reset)
        u = F.silu(u)
        y, h = selective_scan(u, *self._select(u), h, reset)
        return self._output(y, u, z), (recent, h)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        recent, h = state
        if reset is not None:
            h = forget(h, reset)
        u, z = linear(self.input, x).chunk(2, -1)
        u, recent = self.conv.step(u, recent, reset)
        u = F.silu(u)
        y, h = selective_step(u, *self._select(u), h)
        return self._output(y, u, z), (recent, h)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        u, _ = linear(self.input, x).chunk(2, -1)
        u, _ = self.conv.step(u, state[0], None)
        dt, a, _, _ = self._select(F.silu(u))
        return {"keep": torch.exp(dt[..., None] * a)}

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute Δ [..., d_inner], A [d_inner, d_state], and B and C [..., d_state] (algorithm 2, lines 1 to 4)."""
        dt, b, c = linear(self.select, u).split([self.dt_rank, self.d_state, self.d_state], -1)
        return F.softplus(linear(self.dt, dt)), -self.log_a.exp(), b, c

    def _output(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        # the scan may be float32 where the rest is not
        return linear(self.out, (y.to(u.dtype) + self.skip * u) * F.silu(z))
