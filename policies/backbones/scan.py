"""The linear recurrence h[t] = a[t]·h[t-1] + b[t], which minGRU, minLSTM and Mamba share."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.backbones.kernels import choose_body, operators, reference
from policies.backbones.kernels.reference import Candidate, Gates, activate_gates


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
    reverse: bool = False,
) -> Tensor:
    """All states h [B, T, …] of h[t] = a[t]·h[t-1] + b[t], with h[-1] = ``h0`` [B, …] (None: zeros).

    a, b [B, T, …]. Where ``reset`` [B, T] is true nothing is carried over, not even NaN: h[t] = b[t]. ``reverse``: from
    the last step to the first, h[t] = a[t]·h[t+1] + b[t] with h[T] = ``h0``, as returns-to-go and advantages are made.

    The recurrence runs in linear space and at least in float32, whatever the inputs' type or autocast: in the log space
    of Feng et al. 2024 (2410.01201, algorithm 3) a reset is log 0, and float32 loses up to three digits more.

    ``backend``: ``cpu`` and ``cuda`` are the compiled kernels (float32 inside), ``reference`` is PyTorch step by step,
    and ``auto`` is the kernel of the tensors' device, or the reference for float64 or where there is no kernel.

    Raises:
        ValueError: the backend is unknown or cannot be used.
    """
    body = choose_body(backend, torch.empty(0, dtype=torch.promote_types(a.dtype, b.dtype), device=a.device))
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if body == "reference":
        return reference.linear_scan(a, b, None if h0 is None else h0.to(dtype), reset, reverse)
    batch, _, *channels = b.shape
    h0 = b.new_zeros(batch, *channels) if h0 is None else h0.to(dtype)
    h = operators.linear_scan(a.flatten(2), b.flatten(2), h0.flatten(1), reset, reverse)
    return h.unflatten(2, channels)


def gated_scan(
    projected: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    gates: Gates = "mingru",
    candidate: Candidate = "g",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence of minGRU and minLSTM from the linear maps of x, in one pass: h [B, T, D] and the last one [B, D].

    ``projected`` [B, T, 2·D] holds the pre-activations (gate, candidate) of minGRU, h[t] = (1 - z)·h[t-1] + z·h̃, or
    [B, T, 3·D] those (forget, input, candidate) of minLSTM, h[t] = f·h[t-1] + i·h̃, with f and i divided by their sum
    or ``minlstm_unnormalized`` (2410.01201, sections 3.1 and 3.2). h has projected's type; the last state, which is
    carried on, is at least float32, as all sums are. The rest is as for ``linear_scan``.
    """
    dtype = torch.promote_types(projected.dtype, torch.float32)
    if choose_body(backend, projected) == "reference":
        keep, update = activate_gates(projected, gates, candidate)
        h = reference.linear_scan(keep, update, None if h0 is None else h0.to(dtype), reset, False)
        return h.to(projected.dtype), h[:, -1].clone()  # a view would keep the whole sequence in memory
    batch, _, width = projected.shape
    h0 = projected.new_zeros(batch, width // reference.PARTS[gates], dtype=dtype) if h0 is None else h0.to(dtype)
    return operators.gated_scan(projected, h0, reset, gates, candidate)
