"""The common part of minGRU and minLSTM: gates of the input alone around one linear recurrence."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Mixer, State, forget, require
from unroll.policies.backbones.conv import CausalConv
from unroll.policies.backbones.kernels.reference import (
    CANDIDATES,
    PARTS,
    Candidate,
    Gates,
    activate_gates,
    step_gates,
    unit_variance_gates,
)
from unroll.policies.backbones.layers import Linear, linear
from unroll.policies.backbones.remember import FEW, remember_bias
from unroll.policies.backbones.scan import gated_scan, linear_scan

Signed = Literal[False, True, "some"]


class MinRNN(Mixer):
    """h[t] = keep(x)·h[t-1] + update(x);  y = W_o h ("Were RNNs All We Needed?", Feng et al. 2024, arXiv 2410.01201).

    Args:
        form: How the gates are computed, see ``gated_scan``.
        expansion: Channels of h per channel of x.
        candidate: The activation of h̃: ``g`` (the paper's, always positive), ``identity`` or ``tanh``.
        conv: Steps of a causal convolution of x before everything else, or 0 for none.
        learned_initial_state: h[-1] is the candidate's activation of a parameter; otherwise it is 0.
        highway: y = σ(W_p x)·W_o h + (1 - σ(W_p x))·x.
        signed: keep and update become 2·keep - 1 and 2·update, so that an input can turn h over: the weights of h and
            h̃ still sum to 1, and that of h is between -1 and 1. Without it the parity of long sequences is out of
            reach, whatever the number of layers (Grazzi et al. 2024, arXiv 2411.12537). ``some``: in the last sixteenth
            of the channels alone. There the weight of h starts below 0, see ``remember_bias``.
        unit_variance: update is √(1 - keep²)·h̃, times i where gates are not normalised, as in RG-LRU (De et al. 2024,
            arXiv 2402.19427): h has the variance of h̃ where steps are independent, however long it keeps.

    With the last one, gates and recurrence are no longer one operator, which is slower.

    The state is h [B, expansion·d_model]; with a convolution it is (the convolution's state, h).
    """

    reach: Tensor | None  # the m of equation 6 of scan.py [d_inner]; None: 1 everywhere

    def __init__(
        self,
        d_model: int,
        form: Gates,
        expansion: float,
        candidate: Candidate,
        conv: int,
        learned_initial_state: bool,
        highway: bool,
        signed: Signed,
        unit_variance: bool,
    ):
        super().__init__()
        self.d_inner = round(expansion * d_model)
        require(self.d_inner >= 1, f"expansion {expansion} leaves no channel")
        require(conv >= 0, f"conv is the number of steps of the convolution, or 0 for none, not {conv}")
        self.form = form
        self.candidate = candidate
        self.signed = signed
        self.signed_channels = {False: 0, "some": self.d_inner // FEW, True: self.d_inner}[signed]
        reach = 1.0 + (torch.arange(self.d_inner) >= self.d_inner - self.signed_channels)
        self.register_buffer("reach", reach if self.signed_channels else None)
        self.unit_variance = unit_variance
        self.conv = None
        if conv:
            # Random filters would blur what must be remembered: a cue over 50 steps is then learned half as fast.
            self.conv = CausalConv(d_model, conv)
            self.conv.start_as_identity()
        self.project = Linear(d_model, PARTS[form] * self.d_inner)
        self.out = Linear(self.d_inner, d_model)
        self.highway = Linear(d_model, d_model) if highway else None
        # It starts at random and not at 0, where the gradient of a positive candidate is smallest.
        self.before = nn.Parameter(torch.randn(self.d_inner)) if learned_initial_state else None

    @torch.no_grad()
    def remember(self, span: float) -> Tensor:
        """Return the first biases of the gate that keeps, and have W_o read quietly what alternates.

        Where inputs are independent, h has the variance of h̃ times (1 - a)/(1 + a), with a the weight of h: much where
        a is below 0. Times (1 + a)/(1 - a), such a channel is as loud as one of the weight -a.
        """
        bias = remember_bias(self.d_inner, span, self.signed_channels)
        if not self.unit_variance:
            self.out.weight.mul_(bias.clamp(max=0).exp())  # e^u is (1 + a)/(1 - a) where a = 2σ(u) - 1
        return bias

    def of_before(self) -> dict[str, Tensor]:
        """Return what state dicts lack that were made when all channels were signed or none."""
        if self.reach is None:
            return {}
        return {"reach": torch.full_like(self.reach, 2.0 if self.signed is True else 1.0)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in self.of_before().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keep and update [..., d_inner] of x [..., d_model], at least in float32."""
        projected = linear(self.project, x)
        activate = unit_variance_gates if self.unit_variance else activate_gates
        return activate(projected, self.form, self.candidate, self.reach)

    def initial_state(self, batch_size: int) -> State:
        h = self.out.weight.new_zeros(batch_size, self.d_inner)
        if self.before is not None:
            h = h + CANDIDATES[self.candidate](self.before)
        if self.conv is None:
            return h
        return self.conv.initial_state(batch_size), h

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))

        seen = x
        h0 = state
        if self.conv is not None:
            recent, h0 = state
            seen, recent = self.conv(x, recent, reset)

        # one operator from the pre-activations to h, unless episodes begin with a learned state
        begins_anew = reset is not None and self.before is not None
        if not (self.unit_variance or begins_anew):
            h, last = gated_scan(self.project(seen), h0, reset, self.form, self.candidate, reach=self.reach)
        else:
            keep, update = self.gates(seen)
            if reset is not None and self.before is not None:
                # A reset makes the scan start from 0: the learned state enters with the update, keep·h[-1] + update.
                update = update + reset[..., None] * keep * CANDIDATES[self.candidate](self.before)
            h = linear_scan(keep, update, h0, reset)
            # a view would keep the whole sequence allocated
            last = h[:, -1].clone()

        y = self._output(x, h)
        if self.conv is None:
            return y, last
        return y, (recent, last)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        # a learned initial state is rare: a sequence of one step
        if self.before is not None:
            return super().step(x, state, reset)
        seen = x
        h = state
        if self.conv is not None:
            recent, h = state
            seen, recent = self.conv.step(x, recent, reset)
        if reset is not None:
            h = forget(h, reset)
        if self.unit_variance:
            keep, update = self.gates(seen)
            h = torch.addcmul(update, keep, h.to(update.dtype))
        else:
            h = step_gates(linear(self.project, seen), h, self.form, self.candidate, self.reach)

        y = self._output(x, h)
        if self.conv is None:
            return y, h
        return y, (recent, h)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        if self.conv is not None:
            x, _ = self.conv.step(x, state[0], None)
        keep, _ = activate_gates(linear(self.project, x), self.form, self.candidate)
        return {"keep": keep}

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        y = linear(self.out, h.to(x.dtype))
        if self.highway is None:
            return y
        # x + gate·(y - x)
        return torch.lerp(x.to(y.dtype), y, torch.sigmoid(self.highway(x)))
