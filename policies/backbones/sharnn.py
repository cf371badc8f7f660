"""SHA-RNN of "Single Headed Attention RNN: Stop Thinking With Your Head" (Merity 2019, arXiv 1911.11423)."""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from unroll.policies.backbones.attention import WindowedAttention
from unroll.policies.backbones.backbone import Backbone, State, require, stack_gates
from unroll.policies.backbones.layers import Dropout, Linear, drop, linear, norm
from unroll.policies.backbones.lstm import initial_lstm_state, lstm_gates, run_lstm, start_remembering, step_lstm


class SHARNN(Backbone):
    """``n_layers`` of LSTM → single-headed attention → Boom, as published: no skip around the LSTM, and every other
    skip carries a tensor after its LayerNorm. There are no positions: the LSTM knows the order.

    Args:
        attention: which layers attend: ``one``, the last but one (0.25 of the 0.26 bits that attention is worth in
            the paper's table), ``all`` or ``none``.
        window: steps that a query sees, itself included (published: 5000). The published mask shows the last steps of
            a training segment more of them than the first; here every step sees as many, in training and acting.
        boom: hidden channels of the feed-forward per channel.
        memory_span: as in LSTM; 0 as published.

    The state is a tuple over layers of (h, c), and in a layer that attends of (h, c, memory
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
        attends = {"one": {max(0, n_layers - 2)}, "all": set(range(n_layers)), "none": set()}[attention]
        self.layers = nn.ModuleList(
            Layer(d_model, window if i in attends else None, boom, memory_span, dropout) for i in range(n_layers)
        )

    def collapsed(self) -> SHARNN:
        """A copy for acting, whose value gates are constants: the same function with 2·d_model² weights less in each
        layer that attends."""
        copied = copy.deepcopy(self)
        for module in copied.modules():
            if isinstance(module, ValueGate):
                module.collapse()
        return copied

    def initial_state(self, batch_size: int) -> State:
        return tuple(cast(Layer, layer).initial_state(batch_size) for layer in self.layers)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        after = []
        for i, layer in enumerate(self.layers):
            x, next_state = layer(x, None if state is None else state[i], reset)
            after.append(next_state)
        return x, tuple(after)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, next_state = cast(Layer, layer).step(x, before, reset)
            after.append(next_state)
        return x, tuple(after)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        shown = []
        for layer, before in zip(cast(list[Layer], self.layers), state, strict=True):
            shown.append(lstm_gates(layer.lstm, norm(layer.first_norm, x), before))
            x, _ = layer.step(x, before, None)
        return stack_gates(shown)


class Layer(nn.Module):
    """One layer; attends over its memory where ``window`` is given."""

    def __init__(self, d_model: int, window: int | None, boom: int, memory_span: float, dropout: float):
        super().__init__()
        self.first_norm = nn.LayerNorm(d_model)
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        self.attention = None if window is None else GatedAttention(d_model, window, dropout)
        self.boom_norm, self.skip_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.boom = Boom(d_model, boom, dropout)
        self.dropout = Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # and no LayerNorm: its weights stay 1
                nn.init.normal_(module.weight, std=0.1 * d_model**-0.5)
                nn.init.zeros_(module.bias)
        if memory_span:
            start_remembering(self.lstm, memory_span)

    def initial_state(self, batch_size: int) -> State:
        state = initial_lstm_state(self.lstm, batch_size)
        return state if self.attention is None else (*state, *self.attention.initial_state(batch_size))

    def forward(self, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        h, after = run_lstm(self.lstm, norm(self.first_norm, x), None if state is None else state[:2], reset)
        h = drop(self.dropout, h)
        if self.attention is not None:
            h, memory = self.attention(h, None if state is None else state[2:], reset)
            after = (*after, *memory)
        return self._feed_forward(h), after

    def step(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        h, after = step_lstm(self.lstm, norm(self.first_norm, x), state[:2], reset)
        h = drop(self.dropout, h)
        if self.attention is not None:
            h, memory = self.attention.step(h, state[2:], reset)
            after = (*after, *memory)
        return self._feed_forward(h), after

    def _feed_forward(self, h: Tensor) -> Tensor:
        return norm(self.skip_norm, h) + drop(self.dropout, self.boom(norm(self.boom_norm, h)))


class GatedAttention(nn.Module):
    """One head whose keys and values are the normed inputs m, gated and not projected: only the query has a matrix.

    query = σ(q)·LN(W h), key = σ(k)·m, value = gate·m with three learned vectors; the key's gate is applied to the
    query and the value's to the result, which is the same, so that m alone is remembered.
    """

    def __init__(self, d_model: int, window: int, dropout: float):
        super().__init__()
        self.memory_norm, self.skip_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.query, self.query_norm = Linear(d_model, d_model), nn.LayerNorm(d_model)
        self.query_gate, self.key_gate = nn.Parameter(torch.zeros(d_model)), nn.Parameter(torch.zeros(d_model))
        self.value_gate = ValueGate(d_model)
        self.attend = WindowedAttention(1, d_model, window, rotary=False, dropout=dropout)
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int) -> State:
        return self.attend.empty_cache(self.query.weight, batch_size, shared=True)

    def forward(self, h: Tensor, memory: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        query, m, h = self._project(h)
        attended, memory = self.attend(query[:, :, None], m[:, :, None], None, memory, reset)
        return h + drop(self.dropout, attended[:, :, 0] * self.value_gate()), memory

    def step(self, h: Tensor, memory: State, reset: Tensor | None) -> tuple[Tensor, State]:
        query, m, h = self._project(h)
        attended, memory = self.attend.step(query[:, None], m[:, None], None, memory, reset)
        return h + drop(self.dropout, attended[:, 0] * self.value_gate()), memory

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query with both gates, what is remembered, and what the result is added to."""
        m, h = norm(self.memory_norm, h), norm(self.skip_norm, h)
        query = norm(self.query_norm, linear(self.query, h)) * torch.sigmoid(self.query_gate)
        return drop(self.dropout, query) * torch.sigmoid(self.key_gate), m, h


class ValueGate(nn.Module):
    """σ(F)·tanh(C) with [C | F] = W σ(v): a constant that is learned through a matrix (the published "Overparam").

    Computed at every call, and not kept while acting by itself: an optimizer or an average of weights that writes to
    ``parameter.data`` tells nobody, and it is a few percent of a step. ``SHARNN.collapsed`` keeps it.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(d_model))
        self.expand: nn.Linear | None = Linear(d_model, 2 * d_model)

    def collapse(self) -> None:
        """From now on the vector is the gate itself."""
        self.vector, self.expand = nn.Parameter(self().detach()), None

    def forward(self) -> Tensor:
        if self.expand is None:
            return self.vector
        candidate, gate = self.expand(torch.sigmoid(self.vector)).chunk(2)
        return torch.tanh(candidate) * torch.sigmoid(gate)


class Boom(nn.Module):
    """d_model → boom·d_model → GELU → the sum of the chunks of d_model channels: a feed-forward with one matrix.
    GELU is x·σ(1.702 x) (Hendrycks & Gimpel 2016, arXiv 1606.08415), as published."""

    def __init__(self, d_model: int, boom: int, dropout: float):
        super().__init__()
        self.linear = Linear(d_model, boom * d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = linear(self.linear, x)
        y = drop(self.dropout, y * torch.sigmoid(1.702 * y))
        return y.unflatten(-1, (-1, x.shape[-1])).sum(-2)
