"""The linear recurrence h[t] = a[t]·h[t-1] + b[t], which minGRU, minLSTM and Mamba share."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.backbones.backbone import forget


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, reset: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """All states h [B, T, …] of h[t] = a[t]·h[t-1] + b[t], with h[-1] = ``h0`` [B, …] (None: zeros).

    a, b [B, T, …]. Where ``reset`` [B, T] is true nothing is carried over, not even NaN: h[t] = b[t]. The recurrence
    runs in linear space and at least in float32, whatever the inputs' type or autocast: in the log space of Feng et al.
    2024 (2410.01201, algorithm 3) a reset is log 0, and float32 loses up to three digits more.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown scan backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return BACKENDS[backend](a.to(dtype), b.to(dtype), None if h0 is None else h0.to(dtype), reset)


def reference(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> Tensor:
    """The recurrence as it is written, one step after the other: the oracle of the tests."""
    begins = [None] * a.shape[1] if reset is None else reset.unbind(1)
    h, states = h0, []
    for a_t, b_t, reset_t in zip(a.unbind(1), b.unbind(1), begins, strict=True):
        if h is not None and reset_t is not None:
            h = forget(h, reset_t)
        h = b_t if h is None else torch.addcmul(b_t, a_t, h)
        states.append(h)
    return torch.stack(states, 1)


BACKENDS = {"auto": reference, "reference": reference}
