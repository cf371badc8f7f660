"""One step of a policy as a function of flat tensors, its memory among them: the form in which it can be exported."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from unroll.policies.backbones import Backbone, State, map_state


@dataclasses.dataclass(frozen=True)
class Port:
    """A tensor [B, *shape] that goes in or comes out; B is any number of environments.

    Integers are ``low`` and the ones after it, ``high`` of them.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    high: int = 1
    low: Any = 0  # one, or an array [*shape]

    def zeros(self, batch: int) -> Tensor:
        return torch.zeros(batch, *self.shape, dtype=self.dtype)

    def random(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw normal numbers or integers of the port's; a mask is all true: no environment forbids all actions."""
        size = (batch, *self.shape)
        if self.dtype == torch.bool:
            return torch.ones(size, dtype=torch.bool)
        if self.dtype.is_floating_point:
            return torch.randn(size, generator=generator, dtype=self.dtype)
        return (torch.randint(self.high, size, generator=generator) + torch.as_tensor(self.low)).to(self.dtype)


class Step(nn.Module, ABC):
    """``step(*inputs) → (action, *state)``, for tensors in the order of ``inputs``.

    The inputs are what the environment shows, ``reset`` [B] (true at an episode's first step) and the state, which is
    zeros where there was nothing before.
    """

    action: Port

    def __init__(self, shown: list[Port], backbone: Backbone):
        super().__init__()
        with torch.no_grad():
            self.template: State = backbone.initial_state(1)
        self.state = [Port(f"state_{i}", part.dtype, part.shape[1:]) for i, part in enumerate(leaves(self.template))]
        self.shown = shown
        self.inputs = [*shown, Port("reset", torch.bool), *self.state]

    @property
    def outputs(self) -> list[Port]:
        following = [dataclasses.replace(port, name=f"next_{port.name}") for port in self.state]
        return [self.action, *following]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        shown = {port.name: value for port, value in zip(self.inputs, tensors, strict=True)}
        before = iter(tensors[len(tensors) - len(self.state) :])
        action, after = self.act(shown, map_state(lambda _: next(before), self.template))
        return action, *leaves(after)

    @abstractmethod
    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        """Choose the action, in the units of the environment, and return it with the next state."""


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    found = []
    for part in state:
        found += leaves(part)
    return found


def for_acting(backbone: Backbone) -> Backbone:
    """A copy of the backbone, with fewer weights where it knows how."""
    collapsed: Any = getattr(backbone, "collapsed", None)
    return copy.deepcopy(backbone) if collapsed is None else collapsed()
