"""The recurrences as they are written, in PyTorch: the oracle of the tests, and what runs where no kernel does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unroll.policies.backbones.backbone import forget

Gates = Literal["mingru", "minlstm", "minlstm_unnormalized"]
Candidate = Literal["g", "identity", "tanh"]

PARTS: dict[Gates, int] = {"mingru": 2, "minlstm": 3, "minlstm_unnormalized": 3}


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor:
    """h [B, T, …] of h[t] = a[t]·h[t-1] + b[t], one step after the other; see scan.py."""
    begins = [None] * a.shape[1] if reset is None else reset.unbind(1)
    steps = list(zip(a.unbind(1), b.unbind(1), begins, strict=True))  # the gradient of an a[:, t] would fill all of a
    h, states = h0, []
    for a_t, b_t, reset_t in reversed(steps) if reverse else steps:
        if h is not None and reset_t is not None:
            h = forget(h, reset_t)
        h = b_t if h is None else torch.addcmul(b_t, a_t, h)
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1)


def activate_gates(projected: Tensor, gates: Gates, candidate: Candidate) -> tuple[Tensor, Tensor]:
    """keep and update [..., D] of the gates' and the candidate's pre-activations [..., PARTS · D], at least in
    float32: in bfloat16 a gate of 0.998 would be 1.

    No digits are lost where a gate is near 1 or both of minLSTM's are closed: 1 - σ(x) is σ(-x), and f/(f + i) is
    σ(log f - log i).
    """
    gate, value = _split(projected, gates, candidate)
    if gates == "minlstm_unnormalized":
        return torch.sigmoid(gate[0]), torch.sigmoid(gate[1]) * value
    odds = _odds(gate, gates)
    return torch.sigmoid(-odds), torch.sigmoid(odds) * value


def step_gates(projected: Tensor, h: Tensor, gates: Gates, candidate: Candidate) -> Tensor:
    """The state after h [B, D], for one step's projected [B, PARTS · D]: the same with fewer calls."""
    gate, value = _split(projected, gates, candidate)
    if gates == "minlstm_unnormalized":
        return torch.addcmul(torch.sigmoid(gate[1]) * value, torch.sigmoid(gate[0]), h.to(value.dtype))
    return torch.lerp(h.to(value.dtype), value, torch.sigmoid(_odds(gate, gates)))


def _split(projected: Tensor, gates: Gates, candidate: Candidate) -> tuple[list[Tensor], Tensor]:
    """The gates' pre-activations, and the candidate."""
    projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
    *gate, value = projected.chunk(PARTS[gates], -1)
    return gate, CANDIDATES[candidate](value)


def _odds(gate: list[Tensor], gates: Gates) -> Tensor:
    """log(take/keep), where the two make 1."""
    return gate[0] if gates == "mingru" else F.logsigmoid(gate[1]) - F.logsigmoid(gate[0])


def positive(x: Tensor) -> Tensor:
    """g(x) = x + 0.5 where x ≥ 0, else σ(x) (2410.01201, appendix B), without a branch; g'(0) = 1/4, not 0."""
    return F.relu(x) + torch.sigmoid(x.clamp_max(0))


def identity(x: Tensor) -> Tensor:
    return x


CANDIDATES: dict[Candidate, Callable[[Tensor], Tensor]] = {"g": positive, "identity": identity, "tanh": torch.tanh}
