"""The linear recurrence h[t] = a[t]·h[t-1] + b[t], which minGRU, minLSTM and Mamba share."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, reset: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """All states h [B, T, …] of h[t] = a[t]·h[t-1] + b[t], with h[-1] = ``h0`` [B, …] (None: zeros).

    a, b [B, T, …]. Where ``reset`` [B, T] is true nothing is carried over: a[t] counts as 0. The recurrence runs in
    linear space and at least in float32, whatever the inputs' type or autocast: in the log space of Feng et al. 2024
    (2410.01201, algorithm 3) a reset is log 0, and float32 loses up to three digits more.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown scan backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if reset is not None:
        a = a * (~reset).to(dtype).reshape(reset.shape + (1,) * (a.ndim - 2))
    return BACKENDS[backend](a, b, None if h0 is None else h0.to(dtype))


def reference(a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
    """The recurrence as it is written, one step after the other: the oracle of the tests."""
    steps = list(zip(a.unbind(1), b.unbind(1), strict=True))
    h = steps[0][1] if h0 is None else torch.addcmul(steps[0][1], steps[0][0], h0)
    states = [h]
    for a_t, b_t in steps[1:]:
        h = torch.addcmul(b_t, a_t, h)
        states.append(h)
    return torch.stack(states, 1)


BACKENDS = {"auto": reference, "reference": reference}
