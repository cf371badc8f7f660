"""What PPO learns from: a rollout as whole sequences, with the memory as it was before each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from unroll.agents.common.distributed import all_rows, n_ranks, rank
from unroll.policies.backbones import State, map_state, select_rows


@dataclasses.dataclass(frozen=True)
class Sequences:
    """S sequences of L steps, [S, L, …] on the device of the policy; nothing is padded.

    A rollout of T steps of N environments is cut into T / L parts; sequence k·N + e is part k of environment e.
    """

    observations: Any  # [S, L, …], or a dict of such
    actions: Tensor
    values: Tensor  # those below [S, L]: what the policy that acted said
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    reset: Tensor  # bool: the memory is emptied before this step
    action_masks: Tensor | None
    state: State  # of S rows: before each sequence's first step

    def __len__(self) -> int:
        return len(self.reset)

    def select(self, rows: Tensor) -> Sequences:
        def take(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: part[rows] for key, part in value.items()}
            return None if value is None else select_rows(value, rows)

        return Sequences(**{field.name: take(getattr(self, field.name)) for field in dataclasses.fields(self)})

    def with_normal_advantages(self) -> Sequences:
        """The same, whose advantages have mean 0 and deviation 1."""
        if self.advantages.numel() < 2:
            return self
        centered = self.advantages - self.advantages.mean()
        return dataclasses.replace(self, advantages=centered / (self.advantages.std() + 1e-8))

    def of_all_ranks(self, n_envs: int) -> Sequences:
        """Those of every process, which have ``n_envs`` environments each, in the order that one process with all of
        the environments would have them in."""
        if n_ranks() == 1:
            return self

        def in_order(rows: Tensor) -> Tensor:
            return all_rows(rows).unflatten(0, (n_ranks(), -1, n_envs)).transpose(0, 1).flatten(0, 2)

        def gather(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: in_order(part) for key, part in value.items()}
            return None if value is None else map_state(in_order, value)

        return Sequences(**{field.name: gather(getattr(self, field.name)) for field in dataclasses.fields(self)})

    def minibatches(self, size: int) -> Iterator[tuple[Sequences, float]]:
        """All of them in a new random order, ``size`` at a time, the last ones maybe fewer; each with the weight 1.

        Of several processes, which hold the same sequences, every one yields its part of the same minibatches. The
        weight is such that the mean over processes of a mean over sequences, times its weight, is the mean over the
        minibatch. Of a minibatch of fewer sequences than processes, some yield one with the weight 0.
        """
        total, n = len(self), n_ranks()
        if n == 1 and size >= total:
            yield self, 1.0
            return
        for drawn in torch.randperm(total).split(size) if size < total else [torch.arange(total)]:
            rows = drawn[rank() :: n]
            weight = len(rows) * n / len(drawn)
            yield self.select((rows if len(rows) else drawn[:1]).to(self.reset.device)), weight


def make_sequences(
    buffer: RolloutBuffer,
    length: int,
    states: list[State],
    reset_on_done: bool,
    action_masks: np.ndarray | None,
    device: torch.device,
) -> Sequences:
    """The sequences of a full buffer; ``states`` are those before steps 0, length, 2·length, … of all environments.
    The buffer's arrays are read as they lie, time first: its own ``get`` would shuffle the steps."""

    def cut(array: np.ndarray) -> Tensor:
        parts = torch.as_tensor(array).to(device).unflatten(0, (-1, length)).transpose(1, 2)
        return parts.flatten(0, 1)

    observations = buffer.observations
    actions = cut(buffer.actions)
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = actions.squeeze(-1)
    discrete = isinstance(buffer.action_space, spaces.Discrete | spaces.MultiDiscrete)
    starts = buffer.episode_starts.astype(bool)
    return Sequences(
        observations={k: cut(v) for k, v in observations.items()}
        if isinstance(observations, dict)
        else cut(observations),
        actions=actions.to(torch.int64 if discrete else torch.float32),
        values=cut(buffer.values),
        log_probs=cut(buffer.log_probs),
        advantages=cut(buffer.advantages),
        returns=cut(buffer.returns),
        reset=cut(starts if reset_on_done else np.zeros_like(starts)),
        action_masks=None if action_masks is None else cut(action_masks),
        state=map_state(lambda *parts: torch.cat(parts), *states),
    )
