"""The contract of every backbone, and the residual stack that most of them share.

A backbone is one function of a sequence, which computes all steps at once (``forward``) or one after the other
(``step``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from unroll.errors import BackboneError
from unroll.policies.backbones.layers import Dropout, Linear, drop, linear, norm

# A tensor or a nested tuple of tensors: Tensor | tuple[State, ...]. The first axis of every tensor is the batch.
State: TypeAlias = Any

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


def require(condition: bool, message: str) -> None:
    """Raise BackboneError unless ``condition``."""
    if not condition:
        raise BackboneError(message)


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> Any:
    """Apply ``function`` to each tensor of a state, together with the tensors at the same place in ``others``."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if not isinstance(state, tuple):
        raise TypeError(f"a state is a tensor or a nested tuple of tensors, not {type(state).__name__}")
    return tuple(map_state(function, *parts) for parts in zip(state, *others, strict=True))


def select_rows(state: State, rows: Tensor) -> Any:
    """Take some of the batch's rows of a state: ``rows`` are indices or a boolean mask over the batch."""
    return map_state(lambda x: x[rows], state)


def forget(x: Tensor, reset: Tensor) -> Tensor:
    """Return x [B, …] with zeros in the rows where ``reset`` [B] is true.

    Rows are filled and not multiplied by 0, because 0 · NaN would be NaN.

    Raises:
        ValueError: ``reset`` is of another number of rows, or not bool. One row would be taken for all.
    """
    if reset.shape != x.shape[:1] or reset.dtype != torch.bool:
        raise ValueError(f"reset [B] is bool and {tuple(x.shape[:1])} here, not {reset.dtype} and {tuple(reset.shape)}")
    return x.masked_fill(reset.reshape(-1, *[1] * (x.ndim - 1)), 0)


def check_rows(state: State, n: int) -> None:
    """Raise ValueError unless each tensor of the state before a step has ``n`` rows. One row would be taken for all."""
    if not isinstance(state, Tensor):
        for part in state:
            check_rows(part, n)
    elif state.shape[0] != n:
        raise ValueError(f"the state before [B, …] has {state.shape[0]} rows, the step {n}")


class Memory(nn.Module, ABC):
    """The contract of all backbones and of their parts: ``forward`` over sequences and ``step`` are one function.

    * ``T`` calls of ``step`` give what one ``forward`` gives, outputs and final state; so does a sequence cut anywhere.
    * Where ``reset`` is true, the state becomes the initial state before that step is seen.
    * Rows of the batch are independent, and no output depends on a later input.

    ``unroll.testing.check_backbone`` checks it.
    """

    paper: ClassVar[str] = "—"
    """The publication, as the table of all backbones shows it."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first step of an episode."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute y [B, T, D] for x [B, T, D], and the state after the last step.

        ``state`` None means that nothing came before. ``reset`` [B, T] bool is true at an episode's first step.
        """

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute one step: y [B, D] for x [B, D] and reset [B], and the next state.

        This is the same function as ``forward`` with T = 1. A subclass overrides it to be faster.
        """
        if reset is not None:
            reset = reset[:, None]
        y, state = self(x[:, None], state, reset)
        return y[:, 0], state

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Return the gates of a step x [B, D] after ``state``, from 0 to 1: by name, [B, …].

        The dictionary is empty for a memory without gates that are worth showing.
        """
        return {}


class Backbone(Memory):
    """A sequence model of width ``d_model`` that a policy acts through."""

    d_model: int


class Mixer(Memory):
    """The part of a block that moves information through time, which is all in which most backbones differ.

    It is built as ``Mixer(d_model, **options)``.
    """


class ResidualStack(Backbone):
    """``n_layers`` blocks around mixers of one kind, then a norm.

    A block computes x + mixer(norm(x)), then x + mlp(norm(x)). It is the same around every mixer, so that a comparison
    of backbones compares memories and not norms.

    Args:
        plain: The first mixer reads x itself, its output replaces x, and no norm comes last. The parts of an input so
            keep their channels and their scale, where a norm and a skip mix them with the memory. RecurrentPPO learns
            more per step this way; a deep stack needs the other one.
        mlp_ratio: Hidden channels of the MLP per channel of x, or 0 for no MLP.
    """

    def __init__(
        self,
        mixer: type[Mixer],
        d_model: int,
        n_layers: int,
        dropout: float = 0.0,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        plain: bool = False,
        **mixer_options: Any,
    ):
        super().__init__()
        require(0 <= dropout < 1, f"dropout must be at least 0 and less than 1, not {dropout}")
        require(mlp_ratio >= 0, f"mlp_ratio must be at least 0, not {mlp_ratio}")
        self.d_model = d_model
        self.blocks = nn.ModuleList()
        for i in range(n_layers):
            skip = i > 0 or not plain
            self.blocks.append(Block(mixer(d_model, **mixer_options), d_model, dropout, mlp_ratio, activation, skip))
        self.norm = None if plain else nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> State:
        return tuple(block.mixer.initial_state(batch_size) for block in self._blocks())

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        # The mixers are called from here, not by their blocks: fewer functions lie between a policy and a recurrence.
        after = []
        for i, block in enumerate(self._blocks()):
            before = None if state is None else state[i]
            mixed, next_state = block.mixer(normed(block.mixer_norm, x), before, reset)
            x = block.add_mixed(x, mixed)
            after.append(next_state)
        return normed(self.norm, x), tuple(after)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        check_rows(state, x.shape[0])
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            mixed, next_state = block.mixer.step(normed(block.mixer_norm, x), before, reset)
            x = block.add_mixed(x, mixed)
            after.append(next_state)
        return normed(self.norm, x), tuple(after)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        layers = []
        for block, before in zip(self._blocks(), state, strict=True):
            seen = normed(block.mixer_norm, x)
            layers.append(block.mixer.gate_activations(seen, before))
            mixed, _ = block.mixer.step(seen, before, None)
            x = block.add_mixed(x, mixed)
        return stack_gates(layers)

    def _blocks(self) -> list[Block]:
        return cast(list[Block], self.blocks)


class Block(nn.Module):
    """The layers of one block: a mixer and an MLP, each with a norm before it.

    The residual stack calls the mixer itself. There is no MLP if it would have no channel. Without ``skip`` the mixer
    has no norm before it either.
    """

    def __init__(
        self, mixer: Mixer, d_model: int, dropout: float, mlp_ratio: float, activation: Activation, skip: bool
    ):
        super().__init__()
        self.mixer = mixer
        self.skip = skip
        self.mixer_norm = nn.LayerNorm(d_model) if skip else None
        # a sequential and not three layers: the names of the weights in checkpoints
        self.mlp: nn.Sequential | None = None
        hidden = round(mlp_ratio * d_model)
        if hidden:
            self.mlp_norm = nn.LayerNorm(d_model)
            self.mlp = nn.Sequential(Linear(d_model, hidden), ACTIVATIONS[activation](), Linear(hidden, d_model))
        self.dropout = Dropout(dropout)

    def add_mixed(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add to x what the mixer made of its norm, then what the MLP makes of the sum's norm."""
        mixed = drop(self.dropout, mixed)
        x = x + mixed if self.skip else mixed
        if self.mlp is None:
            return x
        # the layers one by one, without the cost of calling modules
        widen, activate, narrow = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.mlp))
        hidden = activate(linear(widen, norm(self.mlp_norm, x)))
        return x + drop(self.dropout, linear(narrow, hidden))


def normed(layer: nn.LayerNorm | None, x: Tensor) -> Tensor:
    """Return x behind a norm, or x itself if there is none."""
    return x if layer is None else norm(layer, x)


def stack_gates(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the gates of several layers, by name: [B, all channels]."""
    found: dict[str, list[Tensor]] = {}
    for gates in layers:
        for name, gate in gates.items():
            found.setdefault(name, []).append(gate.flatten(1))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}
