"""What a memory does while an agent learns: how large it is, and how many of its gates are stuck."""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.agents.ppo.sequences import Sequences
from unroll.policies.actor_critic import RecurrentActorCriticPolicy
from unroll.policies.backbones import State, map_state

SATURATED = 0.05  # a gate this near to 0 or 1 hardly learns


@torch.no_grad()
def memory_metrics(policy: RecurrentActorCriticPolicy, sequences: Sequences) -> dict[str, float]:
    """``state_norm``, the mean L2 norm of the state of one environment, and ``gate_<name>_saturated``, the share of a
    kind of gate that is within 0.05 of 0 or 1. Of the states before the sequences that begin in mid-episode; nothing
    where all begin with one."""
    rows = (~sequences.reset[:, 0]).nonzero().squeeze(1)
    if not len(rows):
        return {}
    part = sequences.select(rows)
    obs = part.observations
    first = {key: value[:, 0] for key, value in obs.items()} if isinstance(obs, dict) else obs[:, 0]
    gates = policy.gate_activations(first, part.state)
    shares = {name: (torch.minimum(gate, 1 - gate) < SATURATED).float().mean() for name, gate in gates.items()}
    metrics = {"state_norm": _norms(part.state).mean()} | {f"gate_{k}_saturated": v for k, v in shares.items()}
    return {name: float(value) for name, value in metrics.items()}


def _norms(state: State) -> Tensor:
    """The L2 norm of all numbers of each row's state, [B]; counters of steps are not among them."""
    squares: list[Tensor] = []

    def add(part: Tensor) -> Tensor:
        if part.is_floating_point():
            squares.append(part.flatten(1).square().sum(1))
        return part

    map_state(add, state)
    return torch.stack(squares).sum(0).sqrt()
