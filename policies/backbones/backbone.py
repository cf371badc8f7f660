"""What every backbone is: one function of a sequence, computed for all steps at once or one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from unroll.errors import BackboneError
from unroll.policies.backbones.layers import Dropout, Linear, drop, linear, norm

# A tensor, or a nested tuple of them: Tensor | tuple[State, ...]. The first axis of every tensor is the batch.
State: TypeAlias = Any

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


def require(condition: bool, message: str) -> None:
    """Raise BackboneError unless ``condition``."""
    if not condition:
        raise BackboneError(message)


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> Any:
    """The state with ``function`` applied to each of its tensors (and to those at the same place in ``others``)."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if not isinstance(state, tuple):
        raise TypeError(f"a state is a tensor or a nested tuple of tensors, not {type(state).__name__}")
    return tuple(map_state(function, *parts) for parts in zip(state, *others, strict=True))


def select_rows(state: State, rows: Tensor) -> Any:
    """The state of some of the batch's rows: ``rows`` are indices or a boolean mask over the batch."""
    return map_state(lambda x: x[rows], state)


def forget(x: Tensor, reset: Tensor) -> Tensor:
    """x [B, …] with zeros in the rows where ``reset`` [B] is true, whatever was there: 0 · NaN would be NaN."""
    return x.masked_fill(reset.reshape(-1, *[1] * (x.ndim - 1)), 0)


class Memory(nn.Module, ABC):
    """The contract: ``forward`` over whole sequences and ``step`` are the same function.

    * ``T`` calls of ``step`` give what one ``forward`` gives, outputs and final state; so does any cut into pieces.
    * Where ``reset`` is true the state becomes the initial state before that step is seen.
    * Rows of the batch are independent, and no output depends on a later input.
    """

    paper: ClassVar[str] = "—"
    """Where it was published, as the table of ``python -m policies.backbones`` shows it."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before anything was seen."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """x [B, T, D] → y [B, T, D] and the state after the last step.

        ``state`` None means that nothing came before; ``reset`` [B, T] bool is true at an episode's first step.
        """

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """One step: x [B, D], reset [B] → y [B, D] and the next state; the same function as ``forward`` with T = 1."""
        y, state = self(x[:, None], state, None if reset is None else reset[:, None])
        return y[:, 0], state

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """What the gates are, from 0 to 1, in a step x [B, D] after ``state``: by name, [B, …]. Nothing, where a memory
        has none that it wants to show."""
        return {}


class Backbone(Memory):
    """A sequence model of width ``d_model`` that a policy acts through."""

    d_model: int


class Mixer(Memory):
    """The part of a block that moves information through time: all in which most backbones differ. Built as
    ``Mixer(d_model, **options)``."""


class ResidualStack(Backbone):
    """``n_layers`` blocks of x + mixer(norm(x)), x + mlp(norm(x)), then a norm: the same around every mixer, so that a
    comparison of backbones compares memories and not norms."""

    def __init__(
        self,
        mixer: type[Mixer],
        d_model: int,
        n_layers: int,
        dropout: float = 0.0,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        **mixer_options: Any,
    ):
        super().__init__()
        require(0 <= dropout < 1, f"dropout must be at least 0 and less than 1, not {dropout}")
        require(mlp_ratio >= 0, f"mlp_ratio must be at least 0, not {mlp_ratio}")
        self.d_model = d_model
        self.blocks = nn.ModuleList(
            Block(mixer(d_model, **mixer_options), d_model, dropout, mlp_ratio, activation) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> State:
        return tuple(cast(Block, block).mixer.initial_state(batch_size) for block in self.blocks)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        after = []
        for i, block in enumerate(self.blocks):
            x, next_state = block(x, None if state is None else state[i], reset)
            after.append(next_state)
        return norm(self.norm, x), tuple(after)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x, next_state = cast(Block, block).step(x, before, reset)
            after.append(next_state)
        return norm(self.norm, x), tuple(after)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        shown = []
        for block, before in zip(cast(list[Block], self.blocks), state, strict=True):
            shown.append(block.mixer.gate_activations(norm(block.mixer_norm, x), before))
            x, _ = block.step(x, before, None)
        return stack_gates(shown)


def stack_gates(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The gates of several layers, by name: [B, all channels]."""
    names = dict.fromkeys(name for gates in layers for name in gates)
    return {name: torch.cat([gates[name].flatten(1) for gates in layers if name in gates], 1) for name in names}


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), unless the MLP has no channel."""

    def __init__(self, mixer: Mixer, d_model: int, dropout: float, mlp_ratio: float, activation: Activation):
        super().__init__()
        hidden = round(mlp_ratio * d_model)
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(d_model)
        self.mlp: nn.Sequential | None = None
        if hidden:
            self.mlp_norm = nn.LayerNorm(d_model)
            self.mlp = nn.Sequential(Linear(d_model, hidden), ACTIVATIONS[activation](), Linear(hidden, d_model))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(norm(self.mixer_norm, x), state, reset)
        return self._residual(x, mixed), state

    def step(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer.step(norm(self.mixer_norm, x), state, reset)
        return self._residual(x, mixed), state

    def _residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + drop(self.dropout, mixed)
        if self.mlp is None:
            return x
        widen, activate, narrow = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.mlp))
        hidden = activate(linear(widen, norm(self.mlp_norm, x)))
        return x + drop(self.dropout, linear(narrow, hidden))
