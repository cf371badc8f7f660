"""The linear recurrence h[t] = a[t]·h[t-1] + b[t], which minGRU, minLSTM and Mamba share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import choose_body, operators, reference
from unroll.policies.backbones.kernels.reference import PARTS, Candidate, Gates, activate_gates


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
        ValueError: a shape is wrong, or the backend is unknown or cannot be used.
    """
    check_shapes(a.shape, b.shape[:1] + b.shape[2:], h0, reset)
    if a.shape != b.shape:
        raise ValueError(f"a and b have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if choose_body(backend, a) == "reference":
        return reference.linear_scan(a, b, None if h0 is None else h0.to(dtype), reset, reverse)
    batch, time, *channels = b.shape
    h0 = b.new_zeros(batch, *channels) if h0 is None else h0.to(dtype)
    flat = (batch, time, math.prod(channels))
    h = operators.linear_scan(a.reshape(flat), b.reshape(flat), h0.reshape(batch, flat[2]), reset, reverse)
    return h.view(b.shape)


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
    carried on, is at least float32, as all sums are. The rest is as for ``linear_scan``. For the kernel on the CPU
    pre-activations beyond ±87, where a gate is 0 or 1 to all digits of float32, are ±87.
    """
    if projected.ndim != 3 or projected.shape[2] % PARTS[gates]:
        raise ValueError(f"projected [B, T, {PARTS[gates]}·D] cannot have the shape {tuple(projected.shape)}")
    batch, _, width = projected.shape
    size = width // PARTS[gates]
    check_shapes(projected.shape, (batch, size), h0, reset)
    dtype = torch.promote_types(projected.dtype, torch.float32)
    if choose_body(backend, projected) == "reference":
        keep, update = activate_gates(projected, gates, candidate)
        h = reference.linear_scan(keep, update, None if h0 is None else h0.to(dtype), reset, False)
        return h.to(projected.dtype), h[:, -1].clone()  # a view would keep the whole sequence in memory
    h0 = projected.new_zeros(batch, size, dtype=dtype) if h0 is None else h0.to(dtype)
    return operators.gated_scan(projected, h0, reset, gates, candidate)


def check_shapes(x: torch.Size, state: tuple[int, ...], h0: Tensor | None, reset: Tensor | None) -> None:
    """A compiled kernel would read and write beyond what it was given."""
    if len(x) < 2 or x[1] < 1:
        raise ValueError(f"a sequence [B, T, …] has at least one step, its shape is not {tuple(x)}")
    if h0 is not None and h0.shape != state:
        raise ValueError(f"the state before [B, …] is {tuple(state)} here, not {tuple(h0.shape)}")
    if reset is not None and (reset.shape != x[:2] or reset.dtype != torch.bool):
        raise ValueError(f"reset [B, T] is bool and {tuple(x[:2])} here, not {reset.dtype} and {tuple(reset.shape)}")
