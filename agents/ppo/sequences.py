"""What PPO learns from: a rollout as whole sequences, with the memory as it was before each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from unroll.agents.common.distributed import world
from unroll.policies.backbones import State, map_state


@dataclasses.dataclass(frozen=True)
class Sequences:
    """S sequences of L steps, [S, L, …] on the device of the policy; nothing is padded.

    A rollout of T steps of N environments is cut into T / L parts; sequence k·N + e is part k of environment e.
    """

    observations: Any
    """[S, L, …], or a dict of such"""
    actions: Tensor
    """[S, L, …]"""
    values: Tensor
    """[S, L], as are all below: the value that the policy that acted gave"""
    log_probs: Tensor
    """the log-probability that it gave to the action"""
    advantages: Tensor
    returns: Tensor
    reset: Tensor
    """bool: the memory is emptied before this step"""
    action_masks: Tensor | None
    """bool [S, L, mask_width]"""
    state: State
    """of S rows: the memory before each sequence's first step"""
    learned_from: Tensor | None = None
    """bool: false for steps in which an environment was only reset; None: all are learned from"""
    reference: Tensor | None = None
    """[S, L, …]: the parameters of the pretrained policy's distributions (see anchor.py)"""

    def __len__(self) -> int:
        return len(self.reset)

    def map(self, function: Callable[..., Tensor], *others: Sequences) -> Sequences:
        """Apply ``function`` to every tensor [S, …], together with those at the same place in ``others``."""

        def apply(value: Any, *further: Any) -> Any:
            if isinstance(value, dict):
                return {key: function(part, *(one[key] for one in further)) for key, part in value.items()}
            return None if value is None else map_state(function, value, *further)

        names = [field.name for field in dataclasses.fields(self)]
        return Sequences(**{name: apply(*(getattr(one, name) for one in (self, *others))) for name in names})

    def select(self, rows: Tensor | slice) -> Sequences:
        """The sequences at these places."""
        return self.map(lambda value: value[rows])

    @property
    def deviation(self) -> float:
        """The standard deviation of the advantages; 0 of a single one."""
        advantages = self.real(self.advantages)
        return float(advantages.std(correction=min(1, advantages.numel() - 1)))

    def real(self, values: Tensor) -> Tensor:
        """Leave out what belongs to steps that are not learned from: of [S, L] all, or a row of the others."""
        return values if self.learned_from is None else values[self.learned_from]

    def with_normal_advantages(self, floor: float = 0.0) -> Sequences:
        """The same sequences with advantages of mean 0 and deviation 1, or less where it was below ``floor``."""
        advantages = self.real(self.advantages)
        if advantages.numel() < 2:
            return self
        centered = self.advantages - advantages.mean()
        deviation = advantages.std().clamp(min=floor)
        return dataclasses.replace(self, advantages=centered / (deviation + 1e-8))

    def of_all_ranks(self, n_envs: int) -> Sequences:
        """The sequences of every process, each of which has ``n_envs`` environments.

        They are in the order that one process with all of the environments would have them in.
        """
        if world.size == 1:
            return self

        def in_order(rows: Tensor) -> Tensor:
            # [process, part, environment, …] → [part, process, environment, …]
            return world.all_rows(rows).unflatten(0, (world.size, -1, n_envs)).transpose(0, 1).flatten(0, 2)

        return self.map(in_order)

    def minibatches(self, size: int) -> Iterator[tuple[Tensor | slice, float]]:
        """Yield the places of all sequences in a new random order, ``size`` at a time, the last ones maybe fewer.

        With them comes a weight, in one process 1. Several processes hold the same sequences, and each yields its part
        of the same minibatches. The weights are such that the mean over processes of (a mean over sequences, times its
        weight) is the mean over the minibatch. Of a minibatch of fewer sequences than processes, some yield one with
        weight 0. Sequences without a step that is learned from are left out: a mean over none of their steps would be
        NaN.
        """
        places = torch.arange(len(self))
        if self.learned_from is not None:
            places = places[self.learned_from.any(1).cpu()]
        total = len(places)
        if world.size == 1 and size >= len(self):  # one minibatch: nothing is drawn and nothing copied
            yield slice(None), 1.0
            return

        # Every process draws the same order, from the same generator.
        if size < total:
            places = places[torch.randperm(total)]
        for drawn in places.split(size):
            rows = drawn[world.rank :: world.size]
            weight = len(rows) * world.size / len(drawn)
            if not len(rows):
                rows = drawn[:1]
            yield rows.to(self.reset.device), weight

    def size_of(self, rows: Tensor | slice, weight: float) -> int:
        """The number of sequences of a minibatch, of all processes, by what ``minibatches`` gives this one.

        A process that yields one with weight 0 has none to tell by; the first never does.
        """
        own = len(self) if isinstance(rows, slice) else len(rows)
        return round(own * world.size / weight) if weight else 0


def make_sequences(
    buffer: RolloutBuffer,
    length: int,
    states: list[State],
    reset_on_done: bool,
    action_masks: np.ndarray | None,
    device: torch.device,
    learned_from: np.ndarray | None = None,
) -> Sequences:
    """Cut a full buffer, of arrays or of tensors, into sequences.

    ``learned_from`` is bool [T, N], None: all steps are.
    ``states`` are those before steps 0, length, 2·length, … of all environments. The buffer's arrays are read as they
    lie, time first: its own ``get`` would shuffle the steps.
    """

    def cut(array: Any) -> Tensor:
        """[T, N, …] → [T / length · N, length, …]."""
        parts = torch.as_tensor(array).to(device).unflatten(0, (-1, length)).transpose(1, 2)
        return parts.flatten(0, 1)

    # What was seen. The parts of a Dict are cut alike.
    observations: Any = buffer.observations
    if isinstance(observations, dict):
        observations = {key: cut(value) for key, value in observations.items()}
    else:
        observations = cut(observations)

    # What was done. The buffer keeps a Discrete action in a row of one number.
    actions = cut(buffer.actions)
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = actions.squeeze(-1)
    discrete = isinstance(buffer.action_space, spaces.Discrete | spaces.MultiDiscrete)

    # Where the memory was emptied before a step.
    starts = torch.as_tensor(buffer.episode_starts).bool()
    return Sequences(
        observations=observations,
        actions=actions.to(torch.int64 if discrete else torch.float32),
        values=cut(buffer.values),
        log_probs=cut(buffer.log_probs),
        advantages=cut(buffer.advantages),
        returns=cut(buffer.returns),
        reset=cut(starts if reset_on_done else torch.zeros_like(starts)),
        action_masks=None if action_masks is None else cut(action_masks),
        learned_from=None if learned_from is None else cut(learned_from),
        state=map_state(lambda *parts: torch.cat(parts), *states),
    )
