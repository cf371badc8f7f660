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
    """Measure the states before the sequences that begin in mid-episode; nothing where all begin with an episode.

    ``state_norm`` is the mean L2 norm of the state of one environment. ``gate_<name>_saturated`` is the share of a kind
    of gate that is within 0.05 of 0 or 1.
    """
    rows = (~sequences.reset[:, 0]).nonzero().squeeze(1)
    if not len(rows):
        return {}
    part = sequences.select(rows)
    observations = part.observations
    if isinstance(observations, dict):
        first = {key: value[:, 0] for key, value in observations.items()}
    else:
        first = observations[:, 0]

    metrics = {"state_norm": float(_norms(part.state).mean())}
    for name, gate in policy.gate_activations(first, part.state).items():
        stuck = torch.minimum(gate, 1 - gate) < SATURATED
        metrics[f"gate_{name}_saturated"] = float(stuck.float().mean())
    return metrics


def _norms(state: State) -> Tensor:
    """The L2 norm of all numbers of each row's state, [B]; counters of steps are not among them."""
    squares: list[Tensor] = []

    def add(part: Tensor) -> Tensor:
        if part.is_floating_point():
            squares.append(part.flatten(1).square().sum(1))
        return part

    map_state(add, state)
    return torch.stack(squares).sum(0).sqrt()
