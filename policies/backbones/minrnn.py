"""What minGRU and minLSTM share: gates of the input alone around one linear recurrence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.backbones.backbone import Mixer, State, forget, require
from policies.backbones.conv import CausalConv
from policies.backbones.lean import linear
from policies.backbones.scan import linear_scan

Candidate = Literal["g", "identity", "tanh"]


class MinRNN(Mixer):
    """h[t] = keep(x)·h[t-1] + update(x);  y = W_o h ("Were RNNs All We Needed?", Feng et al. 2024, arXiv 2410.01201).

    Args:
        n_projections: how many linear maps of x the gates and the candidate need.
        expansion: channels of h per channel of x.
        candidate: what h̃ goes through: ``g`` (the paper's, always positive), ``identity`` or ``tanh``.
        conv: steps of a causal convolution of x before everything else; 0: none.
        learned_initial_state: h[-1] is the candidate's activation of a parameter, where it is 0 otherwise.
        highway: y = σ(W_p x)·W_o h + (1 - σ(W_p x))·x.

    The state is h [B, expansion·d_model]; with a convolution (its state, h).
    """

    def __init__(
        self,
        d_model: int,
        n_projections: int,
        expansion: float,
        candidate: Candidate,
        conv: int,
        learned_initial_state: bool,
        highway: bool,
    ):
        super().__init__()
        self.d_inner = round(expansion * d_model)
        require(self.d_inner >= 1, f"expansion {expansion} leaves no channel")
        require(conv >= 0, f"conv is the number of steps of the convolution, or 0 for none, not {conv}")
        self.activate = CANDIDATES[candidate]
        self.conv = CausalConv(d_model, conv) if conv else None
        self.project = nn.Linear(d_model, n_projections * self.d_inner)
        self.out = nn.Linear(self.d_inner, d_model)
        self.highway = nn.Linear(d_model, d_model) if highway else None
        # not zero, where the gradient of a positive candidate is smallest
        self.before = nn.Parameter(torch.randn(self.d_inner)) if learned_initial_state else None

    @abstractmethod
    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """keep and update [..., d_inner] of x [..., d_model], at least in float32."""

    def projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """The linear maps of x, each [..., d_inner], at least in float32: in bfloat16 a gate of 0.998 would be 1."""
        projected = linear(self.project, x)
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return projected.chunk(self.project.out_features // self.d_inner, -1)

    def initial_state(self, batch_size: int) -> State:
        h = self.out.weight.new_zeros(batch_size, self.d_inner)
        if self.before is not None:
            h = h + self.activate(self.before)
        return h if self.conv is None else (self.conv.initial_state(batch_size), h)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))
        seen, h0, recent = x, state, None
        if self.conv is not None:
            recent, h0 = state
            seen, recent = self.conv(x, recent, reset)
        keep, update = self.gates(seen)
        if reset is not None and self.before is not None:  # the scan starts an episode from 0
            update = update + reset[..., None] * keep * self.activate(self.before)
        h = linear_scan(keep, update, h0, reset)
        last = h[:, -1].clone()  # a view would keep the whole sequence in memory
        return self._output(x, h), last if recent is None else (recent, last)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if self.conv is not None or self.before is not None:
            return super().step(x, state, reset)
        keep, update = self.gates(x)
        if reset is not None:
            state = forget(state, reset)
        h = torch.addcmul(update, keep, state.to(keep.dtype))
        return self._output(x, h), h

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        y = linear(self.out, h.to(x.dtype))
        if self.highway is None:
            return y
        return torch.lerp(x.to(y.dtype), y, torch.sigmoid(self.highway(x)))


def identity(x: Tensor) -> Tensor:
    return x


def positive(x: Tensor) -> Tensor:
    """g(x) = x + 0.5 where x ≥ 0, else σ(x) (the paper's appendix B), without a branch; g'(0) = 1/4, not 0."""
    return F.relu(x) + torch.sigmoid(x.clamp_max(0))


CANDIDATES: dict[Candidate, Callable[[Tensor], Tensor]] = {"g": positive, "identity": identity, "tanh": torch.tanh}
