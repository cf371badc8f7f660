"""SHA-RNN of "Single Headed Attention RNN: Stop Thinking With Your Head" (Merity 2019, arXiv 1911.11423).

The paper numbers no equations, so they are numbered here. A layer computes from its input x, with LN a LayerNorm of its
own at each place:

    (1)  h = LSTM(LN(x))                                       no skip around the LSTM
    (2)  m = LN(h),  r = LN(h)                                 what is remembered, and the skip
    (3)  q = σ(q_gate)·LN(W r),  k = σ(k_gate)·m,  v = v_gate·m       one head; only the query has a matrix
    (4)  h = r + Attention(q, k, v)                            in a layer that attends
    (5)  v_gate = σ(F)·tanh(C),  [C | F] = W σ(vector)         a constant, learned through a matrix ("Overparam")
    (6)  y = LN(h) + Boom(LN(h))
    (7)  Boom(x) = Σ over chunks of GELU(W x)                  a feed-forward with one matrix
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from unroll.policies.backbones.attention import WindowedAttention
from unroll.policies.backbones.backbone import Backbone, State, check_rows, require, stack_gates
from unroll.policies.backbones.fused_rnn import LSTMKernel
from unroll.policies.backbones.layers import Dropout, Linear, drop, linear, norm
from unroll.policies.backbones.lstm import initial_lstm_state, lstm_gates, run_lstm, start_remembering, step_lstm


class SHARNN(Backbone):
    """``n_layers`` of LSTM → single-headed attention → Boom, as published.

    Every skip carries a tensor after its LayerNorm. There are no positions: the LSTM knows the order.

    Args:
        attention: Which layers attend: ``one``, the last but one (0.25 of the 0.26 bits that attention is worth in
            the paper's table), ``all`` or ``none``.
        window: Steps that a query sees, itself included (published: 5000). The published mask shows the last steps of
            a training segment more of them than the first; here every step sees as many, in training and acting.
        boom: Hidden channels of the feed-forward per channel.
        memory_span: As in LSTM; 0 is as published.

    The state is a tuple over layers: of (h, c), and in a layer that attends of (h, c, memory
    [B, window - 1, 1, d_model], steps since the episode began [B]).
    """

    paper = "Merity 2019, arXiv 1911.11423"

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        attention: Literal["one", "all", "none"] = "one",
        window: int = 64,
        boom: int = 4,
        memory_span: float = 100.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        require(0 <= dropout < 1, f"dropout must be at least 0 and less than 1, not {dropout}")
        require(boom >= 1, f"boom must be at least 1, not {boom}")
        self.d_model = d_model
        # the paper's one layer is the last but one, or the only one
        attends = {"one": {max(0, n_layers - 2)}, "all": set(range(n_layers)), "none": set()}[attention]
        self.layers = nn.ModuleList()
        for i in range(n_layers):
            reach = window if i in attends else None
            self.layers.append(Layer(d_model, reach, boom, memory_span, dropout))

    def collapsed(self) -> SHARNN:
        """Copy the backbone for acting, with constants as value gates.

        It is the same function with 2·d_model² weights less in each layer that attends.
        """
        copied = copy.deepcopy(self)
        for module in copied.modules():
            if isinstance(module, ValueGate):
                module.collapse()
        return copied

    def initial_state(self, batch_size: int) -> State:
        return tuple(layer.initial_state(batch_size) for layer in self._layers())

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        after = []
        for i, layer in enumerate(self._layers()):
            before = None if state is None else state[i]
            x, next_state = layer(x, before, reset)
            after.append(next_state)
        return x, tuple(after)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        check_rows(state, x.shape[0])
        after = []
        for layer, before in zip(self._layers(), state, strict=True):
            x, next_state = layer.step(x, before, reset)
            after.append(next_state)
        return x, tuple(after)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        layers = []
        for layer, before in zip(self._layers(), state, strict=True):
            layers.append(lstm_gates(layer.lstm, norm(layer.first_norm, x), before))
            x, _ = layer.step(x, before, None)
        return stack_gates(layers)

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], self.layers)


class Layer(nn.Module):
    """One layer of SHA-RNN. It attends over its memory if ``window`` is given."""

    def __init__(self, d_model: int, window: int | None, boom: int, memory_span: float, dropout: float):
        super().__init__()
        self.first_norm = nn.LayerNorm(d_model)
        self.lstm = LSTMKernel(d_model, d_model, batch_first=True)
        self.attention = None if window is None else GatedAttention(d_model, window, dropout)
        self.boom_norm = nn.LayerNorm(d_model)
        self.skip_norm = nn.LayerNorm(d_model)
        self.boom = Boom(d_model, boom, dropout)
        self.dropout = Dropout(dropout)

        # The published initialisation, of linear maps alone: the weights of a LayerNorm stay 1.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.1 * d_model**-0.5)
                nn.init.zeros_(module.bias)
        if memory_span:
            start_remembering(self.lstm, memory_span)

    def initial_state(self, batch_size: int) -> State:
        state = initial_lstm_state(self.lstm, batch_size)
        if self.attention is None:
            return state
        return (*state, *self.attention.initial_state(batch_size))

    def forward(self, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        before = None
        memory = None
        if state is not None:
            before = state[:2]
            memory = state[2:]

        # equation 1
        h, after = run_lstm(self.lstm, norm(self.first_norm, x), before, reset)
        h = drop(self.dropout, h)
        # equations 2 to 4
        if self.attention is not None:
            h, memory = self.attention(h, memory, reset)
            after = (*after, *memory)
        # equation 6
        return self._feed_forward(h), after

    def step(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        # equations 1, 2 to 4, and 6
        h, after = step_lstm(self.lstm, norm(self.first_norm, x), state[:2], reset)
        h = drop(self.dropout, h)
        if self.attention is not None:
            h, memory = self.attention.step(h, state[2:], reset)
            after = (*after, *memory)
        return self._feed_forward(h), after

    def _feed_forward(self, h: Tensor) -> Tensor:
        return norm(self.skip_norm, h) + drop(self.dropout, self.boom(norm(self.boom_norm, h)))


class GatedAttention(nn.Module):
    """One head whose keys and values are the normed inputs m, gated and not projected (equations 2 to 4).

    The key's gate is applied to the query and the value's gate to the result. This is the same, and m alone has to be
    remembered.
    """

    def __init__(self, d_model: int, window: int, dropout: float):
        super().__init__()
        self.memory_norm = nn.LayerNorm(d_model)
        self.skip_norm = nn.LayerNorm(d_model)
        self.query = Linear(d_model, d_model)
        self.query_norm = nn.LayerNorm(d_model)
        self.query_gate = nn.Parameter(torch.zeros(d_model))
        self.key_gate = nn.Parameter(torch.zeros(d_model))
        self.value_gate = ValueGate(d_model)
        self.attend = WindowedAttention(1, d_model, window, rotary=False, dropout=dropout)
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int) -> State:
        return self.attend.empty_cache(self.query.weight, batch_size, shared=True)

    def forward(self, h: Tensor, memory: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        query, m, skip = self._project(h)
        # equation 4, with one head; the keys m are the values
        attended, memory = self.attend(query[:, :, None], m[:, :, None], None, memory, reset)
        return skip + drop(self.dropout, attended[:, :, 0] * self.value_gate()), memory

    def step(self, h: Tensor, memory: State, reset: Tensor | None) -> tuple[Tensor, State]:
        query, m, skip = self._project(h)
        attended, memory = self.attend.step(query[:, None], m[:, None], None, memory, reset)
        return skip + drop(self.dropout, attended[:, 0] * self.value_gate()), memory

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the query with both gates, m and the skip (equations 2 and 3)."""
        # equation 2
        m = norm(self.memory_norm, h)
        skip = norm(self.skip_norm, h)
        # equation 3
        query = norm(self.query_norm, linear(self.query, skip)) * torch.sigmoid(self.query_gate)
        return drop(self.dropout, query) * torch.sigmoid(self.key_gate), m, skip


class ValueGate(nn.Module):
    """The constant of equation 5.

    It is computed at every call and not kept while acting: an optimizer or an average of weights that writes to
    ``parameter.data`` tells nobody, and it is a few percent of a step. ``SHARNN.collapsed`` keeps it.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(d_model))
        self.expand: nn.Linear | None = Linear(d_model, 2 * d_model)

    def collapse(self) -> None:
        """Make the vector the gate itself, from now on."""
        self.vector = nn.Parameter(self().detach())
        self.expand = None

    def forward(self) -> Tensor:
        if self.expand is None:
            return self.vector
        # equation 5
        candidate, gate = self.expand(torch.sigmoid(self.vector)).chunk(2)
        return torch.tanh(candidate) * torch.sigmoid(gate)


class Boom(nn.Module):
    """The feed-forward of equation 7, over ``boom`` chunks of d_model channels.

    GELU is x·σ(1.702 x) (Hendrycks & Gimpel 2016, arXiv 1606.08415), as published.
    """

    def __init__(self, d_model: int, boom: int, dropout: float):
        super().__init__()
        self.linear = Linear(d_model, boom * d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = linear(self.linear, x)
        # GELU, then the sum over chunks
        y = drop(self.dropout, y * torch.sigmoid(1.702 * y))
        return y.unflatten(-1, (-1, x.shape[-1])).sum(-2)
