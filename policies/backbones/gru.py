"""The GRU (Cho et al. 2014, arXiv 1406.1078) as PyTorch's fused kernels compute it: the control for minGRU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unroll.policies.backbones.backbone import Mixer, State, forget
from unroll.policies.backbones.fused_rnn import GRUKernel, run_with_resets
from unroll.policies.backbones.layers import without_autocast
from unroll.policies.backbones.remember import remember_bias
from unroll.policies.backbones.scan import check_shapes


class GRU(Mixer):
    """The equations 5 to 8 of Cho et al., with the reset gate after the matrix, as cuDNN has it.

    z and r = σ(W x + U h), n = tanh(W_n x + r·(U_n h)), h[t] = (1 - z)·n + z·h[t-1].

    The state is h [B, d_model]. It has the weights' type whatever the autocast, as all that ``forward`` computes.

    Args:
        memory_span: The update gates start so that the channels forget over 2 to this many steps, as in minGRU.
    """

    paper = "Cho et al. 2014, arXiv 1406.1078"

    def __init__(self, d_model: int, memory_span: float = 100.0):
        super().__init__()
        self.gru = GRUKernel(d_model, d_model, batch_first=True)
        _, _, input_bias, hidden_bias = self.gru.all_weights[0]
        # PyTorch's order of gates is r, z, n, and its z keeps the old state
        with torch.no_grad():
            input_bias[d_model : 2 * d_model] = remember_bias(d_model, memory_span)
            hidden_bias[d_model : 2 * d_model] = 0

    def initial_state(self, batch_size: int) -> State:
        return next(self.parameters()).new_zeros(batch_size, self.gru.hidden_size)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))
        check_shapes(x.shape, (x.shape[0], self.gru.hidden_size), state, reset)
        before = state.to(self.gru.weight_hh_l0.dtype)
        # bfloat16 has too few digits for a recurrence
        with without_autocast(x.device):
            x = x.to(before.dtype)
            # the way around resets needs a row
            if reset is None or not x.shape[0]:
                y, h = self.gru(x, before[None])
                return y, h[0]
            y, (after,) = run_with_resets(self.gru, x, (before,), reset)
            return y, after

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        state = state.to(self.gru.weight_hh_l0.dtype)
        if reset is not None:
            state = forget(state, reset)
        with without_autocast(x.device):
            h = torch.gru_cell(x.to(state.dtype), state, *self.gru.all_weights[0])
        # Who writes into the output must not write into the memory.
        return h.clone(), h

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        weight, recurrent, bias, recurrent_bias = self.gru.all_weights[0]
        gates = torch.sigmoid(F.linear(x, weight, bias) + F.linear(state, recurrent, recurrent_bias)).chunk(3, 1)
        return {"reset": gates[0], "keep": gates[1]}
