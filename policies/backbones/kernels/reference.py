"""The recurrences in PyTorch, as they are written: the tests' oracle, and what runs where there is no kernel.

Equation numbers are those of ../scan.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unroll.policies.backbones.backbone import forget

Gates = Literal["mingru", "minlstm", "minlstm_unnormalized"]
Candidate = Literal["g", "identity", "tanh"]

# How many pre-activations there are per channel of h: the gates' and the candidate's.
PARTS: dict[Gates, int] = {"mingru": 2, "minlstm": 3, "minlstm_unnormalized": 3}


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor:
    """Compute h [B, T, …] of equation 1, one step after the other."""
    time = a.shape[1]
    order = range(time)
    if reverse:
        order = order[::-1]

    # All steps are taken apart at once: the gradient of each a[:, t] would be a tensor as large as a.
    a_steps = a.unbind(1)
    b_steps = b.unbind(1)
    resets = None if reset is None else reset.unbind(1)

    h = h0
    states: list[Any] = [None] * time
    for t in order:
        if h is None:
            # nothing came before: h is 0
            h = b_steps[t]
        else:
            if resets is not None:
                h = forget(h, resets[t])
            h = torch.addcmul(b_steps[t], a_steps[t], h)
        states[t] = h
    return torch.stack(states, 1)


def activate_gates(
    projected: Tensor, gates: Gates, candidate: Candidate, turn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute a and b of equation 2 or 3, [..., D] each, from the pre-activations [..., PARTS · D].

    ``turn`` [2, D] has s and m of equation 6; None: 1. They are at least float32: in bfloat16 a gate of 0.998 would be
    1. No digits are lost where a gate is near 1 or both of minLSTM's are closed, since 1 - σ(x) is computed as σ(-x),
    and f/(f + i) as σ(log f - log i).
    """
    gate, value = _split(projected, gates, candidate)
    if gates == "minlstm_unnormalized":
        keep, take = torch.sigmoid(gate[0]), torch.sigmoid(gate[1])
    else:
        odds = _odds(gate, gates)
        keep, take = torch.sigmoid(-odds), torch.sigmoid(odds)
    if turn is not None:
        sign, m = turn.unbind()
        keep, take = sign * (m * keep + (1 - m)), m * take
    return keep, take * value


def unit_variance_gates(
    projected: Tensor, gates: Gates, candidate: Candidate, turn: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute a, by equation 6 too where ``turn`` is given, and √(1 - a²)·h̃; times i if gates are not normalised."""
    gate, value = _split(projected, gates, candidate)
    if gates == "minlstm_unnormalized":
        odds = -gate[0]
        value = torch.sigmoid(gate[1]) * value
    else:
        odds = _odds(gate, gates)
    keep, rest = torch.sigmoid(-odds), torch.sigmoid(odds)  # rest is 1 - keep to all digits
    square = rest * (1 + keep)
    if turn is not None:
        sign, m = turn.unbind()
        square = m * rest * (m * keep + (2 - m))
        keep = sign * (m * keep + (1 - m))
    return keep, square.clamp_min(1e-30).sqrt() * value  # a root's slope at 0 is infinite


def step_gates(projected: Tensor, h: Tensor, gates: Gates, candidate: Candidate, turn: Tensor | None = None) -> Tensor:
    """Compute the state after h [B, D] from one step's pre-activations [B, PARTS · D], with fewer calls of PyTorch."""
    if gates == "minlstm_unnormalized":
        keep, update = activate_gates(projected, gates, candidate, turn)
        return torch.addcmul(update, keep, h.to(update.dtype))
    # the weights of ±h and h̃ sum to 1: h + take·(h̃ - h)
    gate, value = _split(projected, gates, candidate)
    take = torch.sigmoid(_odds(gate, gates))
    h = h.to(value.dtype)
    if turn is None:
        return torch.lerp(h, value, take)
    sign, m = turn.unbind()
    return torch.lerp(sign * h, value, m * take)


def _split(projected: Tensor, gates: Gates, candidate: Candidate) -> tuple[list[Tensor], Tensor]:
    """Split pre-activations into those of the gates and the activated candidate h̃."""
    projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
    *gate, value = projected.chunk(PARTS[gates], -1)
    return gate, CANDIDATES[candidate](value)


def _odds(gate: list[Tensor], gates: Gates) -> Tensor:
    """Return log(take/keep), for gates that sum to 1: k of equation 2, or log i - log f of equation 3."""
    if gates == "mingru":
        return gate[0]
    return F.logsigmoid(gate[1]) - F.logsigmoid(gate[0])


def positive(x: Tensor) -> Tensor:
    """g(x) = x + 0.5 for x ≥ 0, else σ(x) (2410.01201, appendix B), without a branch; its slope at 0 is 1/4, not 0."""
    return F.relu(x) + torch.sigmoid(x.clamp_max(0))


def identity(x: Tensor) -> Tensor:
    return x


CANDIDATES: dict[Candidate, Callable[[Tensor], Tensor]] = {"g": positive, "identity": identity, "tanh": torch.tanh}
