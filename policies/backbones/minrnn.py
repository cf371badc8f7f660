"""The common part of minGRU and minLSTM: gates of the input alone around one linear recurrence."""

from __future__ import annotations

from typing import Any

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
from unroll.policies.backbones.remember import FEW, Signed
from unroll.policies.backbones.scan import gated_scan, linear_scan


def turns(channels: int, signed: Signed) -> Tensor | None:
    """Return s and m of equation 6 of scan.py, [2, channels]; None where both are 1 everywhere."""
    if not signed or (signed == "some" and channels < FEW):
        return None
    turn = torch.ones(2, channels)
    if signed == "some":
        turn[0, -(channels // FEW) :] = -1
    else:
        turn[1] = 2
    return turn


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
            reach, whatever the number of layers (Grazzi et al. 2024, arXiv 2411.12537). A sixteenth of the channels
            starts below 0, see ``remember_bias``. ``some``: in this sixteenth alone, keep becomes -keep.
        unit_variance: update is √(1 - keep²)·h̃, times i where gates are not normalised, as in RG-LRU (De et al. 2024,
            arXiv 2402.19427): h has the variance of h̃ where steps are independent, however long it keeps.

    With the last one, gates and recurrence are no longer one operator, which is slower.

    The state is h [B, expansion·d_model]; with a convolution it is (the convolution's state, h).
    """

    turn: Tensor | None  # s and m of equation 6 of scan.py, [2, d_inner]; None: both are 1

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
        require(signed in (False, True) or signed == "some", f"signed is false, true or some, not {signed!r}")
        self.register_buffer("turn", turns(self.d_inner, signed))
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

    def of_before(self) -> dict[str, Tensor]:
        """Return what state dicts lack that were made when all channels were signed or none."""
        if self.turn is None:
            return {}
        before = turns(self.d_inner, True) if self.signed is True else None
        return {"turn": torch.ones(2, self.d_inner) if before is None else before}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}project.weight" in state_dict:  # the gates that it belongs to
            for name, value in self.of_before().items():
                state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keep and update [..., d_inner] of x [..., d_model], at least in float32."""
        projected = linear(self.project, x)
        activate = unit_variance_gates if self.unit_variance else activate_gates
        return activate(projected, self.form, self.candidate, self.turn)

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
            h, last = gated_scan(self.project(seen), h0, reset, self.form, self.candidate, turn=self.turn)
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
            h = step_gates(linear(self.project, seen), h, self.form, self.candidate, self.turn)

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
