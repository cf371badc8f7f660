"""The LSTM (Hochreiter & Schmidhuber 1997) as PyTorch's fused kernels compute it: the control for minLSTM.

SHA-RNN has an LSTM in each layer too, so the work is done by functions of an ``nn.LSTM``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Mixer, State, forget, map_state
from unroll.policies.backbones.fused_rnn import LSTMKernel, run_with_resets
from unroll.policies.backbones.layers import without_autocast
from unroll.policies.backbones.remember import remember_bias
from unroll.policies.backbones.scan import check_shapes


class LSTM(Mixer):
    """c[t] = f·c[t-1] + i·tanh(W_g x + U_g h), h[t] = o·tanh(c[t]); f, i, o = σ(W x + U h[t-1]).

    The state is (h, c), each [B, d_model]. It has the weights' type whatever the autocast, as all that ``forward``
    computes.

    Args:
        memory_span: The gates start at f = 1 - 1/τ and i = 1/τ, as in minLSTM, for spans τ of 2 to this many steps.
    """

    paper = "Hochreiter & Schmidhuber 1997"

    def __init__(self, d_model: int, memory_span: float = 100.0):
        super().__init__()
        self.lstm = LSTMKernel(d_model, d_model, batch_first=True)
        start_remembering(self.lstm, memory_span)

    def initial_state(self, batch_size: int) -> State:
        return initial_lstm_state(self.lstm, batch_size)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        return run_lstm(self.lstm, x, state, reset)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        h, after = step_lstm(self.lstm, x, state, reset)
        # Who writes into the output must not write into the memory.
        return h.clone(), after

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        return lstm_gates(self.lstm, x, state)


def start_remembering(lstm: nn.LSTM, memory_span: float) -> None:
    """Bias the forget gates to keep and the input gates to take 1/τ, for spans τ of 2 to ``memory_span`` steps."""
    size = lstm.hidden_size
    _, _, input_bias, hidden_bias = lstm.all_weights[0]
    # PyTorch's order of gates is i, f, g, o
    with torch.no_grad():
        bias = remember_bias(size, memory_span)
        input_bias[: 2 * size] = torch.cat([-bias, bias])
        hidden_bias[: 2 * size] = 0


def initial_lstm_state(lstm: nn.LSTM, batch_size: int) -> State:
    """Return zeros (h, c)."""
    zeros = next(lstm.parameters()).new_zeros(batch_size, lstm.hidden_size)
    return zeros, zeros.clone()


def run_lstm(lstm: nn.LSTM, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
    """Run a one-layer, batch-first LSTM over x [B, T, D], in one fused call."""
    if state is None:
        state = initial_lstm_state(lstm, len(x))
    for part in state:
        check_shapes(x.shape, (x.shape[0], lstm.hidden_size), part, reset)
    before = as_weights(lstm, state)
    # bfloat16 has too few digits for a recurrence
    with without_autocast(x.device):
        x = x.to(before[0].dtype)
        # the ways around resets need a row
        if reset is None or not x.shape[0]:
            y, (h, c) = lstm(x, (before[0][None], before[1][None]))
            return y, (h[0], c[0])
        return run_with_resets(lstm, x, before, reset)


def step_lstm(lstm: nn.LSTM, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
    """Run a one-layer LSTM for one step x [B, D]."""
    before = as_weights(lstm, state)
    if reset is not None:
        before = map_state(lambda part: forget(part, reset), before)
    with without_autocast(x.device):
        h, c = torch.lstm_cell(x.to(before[0].dtype), before, *lstm.all_weights[0])
    return h, (h, c)


def lstm_gates(lstm: nn.LSTM, x: Tensor, state: State) -> dict[str, Tensor]:
    """Return the input, forget and output gates of a step x [B, D], each [B, H]."""
    # the fused kernels do not give their gates away, so they are computed once more
    weight, recurrent, bias, recurrent_bias = lstm.all_weights[0]
    gates = torch.sigmoid(F.linear(x, weight, bias) + F.linear(state[0], recurrent, recurrent_bias)).chunk(4, 1)
    return {"input": gates[0], "forget": gates[1], "output": gates[3]}


def as_weights(lstm: nn.LSTM, state: State) -> State:
    """Convert a state to the weights' type. Autocast may have made another, which a call without autocast refuses."""
    dtype = lstm.weight_hh_l0.dtype
    return state[0].to(dtype), state[1].to(dtype)
