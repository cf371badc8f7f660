"""The operators' bodies on the CPU: PyTorch tensors go into numba's kernels and come out again.

numba's kernels want float32 (bool for resets) in C order, which PyTorch's tensors need not have; outputs are allocated
here and written by the kernel.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from unroll.policies.backbones.kernels import conv, numba_conv, numba_kernels, numba_selective, operators, selective
from unroll.policies.backbones.kernels.numba_kernels import CANDIDATES

GATES = {
    "mingru": numba_kernels.MINGRU,
    "minlstm": numba_kernels.MINLSTM,
    "minlstm_unnormalized": numba_kernels.MINLSTM_UNNORMALIZED,
}

# The selective kernels compute decays as powers of 2: e^x = 2^(x · log2 e).
LOG2_E = 1.4426950408889634

# How many numbers each thread after the first must have to compute. With fewer, threads wait longer for each other
# than they save.
GRAIN = 2**15

MAX_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

# A kernel takes all of numba's threads, and numba's simplest threading layer aborts when a second one starts.
_one_at_a_time = threading.Lock()
_first_process: int | None = None


def why_not() -> str | None:
    """Say why no kernel may run in this process; None means that it may."""
    if _first_process in (None, os.getpid()):
        return None
    return "forked from a process that ran a kernel, where GNU's OpenMP ends the child; the start method spawn is safe"


@operators.gated_scan.register_kernel("cpu")
def gated_forward(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str, turn: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    h = _empty(batch, time, h0.shape[1])
    last = _empty(*h0.shape)

    x = _as_array(projected)
    start = _as_array(h0)
    mask = _mask(reset, batch, time)
    with _one_kernel(x.size):
        numba_kernels.gated_forward(x, start, mask, *_form(gates, candidate, turn), h.numpy(), last.numpy())
    return h.to(projected.dtype), last


@operators.gated_scan_backward.register_kernel("cpu")
def gated_backward(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
    turn: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    dx = _empty(*projected.shape)
    dh0 = _empty(*h0.shape)
    # a sum of what the kernel reads ahead, which is of no use here
    touched = _empty(batch)

    inputs = [_as_array(x) for x in (dh, dlast, projected, h0)]
    mask = _mask(reset, batch, time)
    states = _as_array(h)
    form = _form(gates, candidate, turn)
    with _one_kernel(dh.numel()):
        numba_kernels.gated_backward(*inputs, mask, states, *form, dx.numpy(), dh0.numpy(), touched.numpy())
    return dx.to(projected.dtype), dh0


def _form(gates: str, candidate: str, turn: Tensor | None) -> tuple[Any, ...]:
    """Return the arguments of the kernels that say which recurrence it is."""
    return GATES[gates], CANDIDATES[candidate], None if turn is None else _as_array(turn)


@operators.linear_scan.register_kernel("cpu")
def linear_forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    h = _empty(*a.shape)

    inputs = [_as_array(x) for x in (a, b, h0)]
    mask = _mask(reset, *a.shape[:2])
    with _one_kernel(a.numel()):
        numba_kernels.linear_forward(*inputs, mask, reverse, h.numpy())
    return h


@operators.linear_scan_backward.register_kernel("cpu")
def linear_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    da = _empty(*a.shape)
    db = _empty(*a.shape)
    dh0 = _empty(*h0.shape)

    inputs = [_as_array(x) for x in (dh, a, h0)]
    mask = _mask(reset, *a.shape[:2])
    states = _as_array(h)
    with _one_kernel(dh.numel()):
        numba_kernels.linear_backward(*inputs, mask, reverse, states, da.numpy(), db.numpy(), dh0.numpy())
    return da, db, dh0


@selective.selective_scan.register_kernel("cpu")
def selective_forward(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = u.shape
    n_states = len(a)
    y = _empty(*u.shape)
    last = _empty(*h0.shape)
    # one state for each chunk of steps, the last of which may be shorter
    borders = _empty(batch, -(-time // selective.CHUNK), *a.shape)

    inputs = [_as_array(x) for x in (u, dt, a * LOG2_E, b, c, h0)]
    mask = _mask(reset, batch, time)
    outputs = [x.numpy() for x in (y, last, borders)]
    with _one_kernel(u.numel() * n_states):
        numba_selective.selective_forward(*inputs, mask, selective.CHUNK, *outputs)
    return y, last, borders


@selective.selective_scan_backward.register_kernel("cpu")
def selective_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    reset: Tensor | None,
    borders: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_states = len(a)
    du, ddt, db, dc = (_empty(*x.shape) for x in (u, dt, b, c))
    # each row of the batch has its own sum for a; they are added up below
    da = _empty(*dlast.shape)
    dh0 = _empty(*dlast.shape)

    inputs = [_as_array(x) for x in (dy, dlast, u, dt, a * LOG2_E, b, c)]
    mask = _mask(reset, *u.shape[:2])
    kept = _as_array(borders)
    outputs = [x.numpy() for x in (du, ddt, da, db, dc, dh0)]
    with _one_kernel(dy.numel() * n_states):
        numba_selective.selective_backward(*inputs, mask, kept, selective.CHUNK, *outputs)
    return du, ddt, da.sum(0), db, dc, dh0


@conv.causal_conv.register_kernel("cpu")
def conv_forward(
    x: Tensor, before: Tensor, weight: Tensor, bias: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = _empty(*x.shape)
    last = _empty(*before.shape)

    seen, state, *filters = (_as_array(a) for a in (x, before, weight, bias))
    mask = _mask(reset, *x.shape[:2])
    with _one_kernel(x.numel()):
        numba_conv.conv_forward(seen, state, mask, *filters, y.numpy(), last.numpy())
    return y.to(x.dtype), last.to(x.dtype)


@conv.causal_conv_backward.register_kernel("cpu")
def conv_backward(
    dy: Tensor, dlast: Tensor, x: Tensor, before: Tensor, weight: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = len(x)
    # each row of the batch has its own sums for the weights; they are added up below
    gradients = [_empty(*x.shape), _empty(*before.shape), _empty(batch, *weight.shape), _empty(batch, weight.shape[1])]

    inputs = [_as_array(a) for a in (dy, dlast, x, before)]
    mask = _mask(reset, *x.shape[:2])
    with _one_kernel(x.numel()):
        numba_conv.conv_backward(*inputs, mask, _as_array(weight), *(a.numpy() for a in gradients))
    dx, dbefore, dweight, dbias = gradients
    return dx.to(x.dtype), dbefore.to(before.dtype), dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)


@contextlib.contextmanager
def _one_kernel(numbers: int) -> Iterator[None]:
    """Let one kernel run, which computes ``numbers`` numbers, on at most as many threads as PyTorch may use."""
    global _first_process
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"no kernel may run here: {reason}")

    threads = torch.get_num_threads()
    with _one_at_a_time:
        is_first = _first_process is None
        _first_process = os.getpid()
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, MAX_THREADS, 1 + numbers // GRAIN))
        try:
            yield
        finally:
            # kernels of the user's own keep their number
            numba.set_num_threads(before)

    if is_first:
        # When numba starts its threads, it sets how many PyTorch has: they share GNU's OpenMP.
        torch.set_num_threads(threads)


def _empty(*shape: int) -> Tensor:
    """Allocate a float32 tensor on the CPU for a kernel to write to, whatever PyTorch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _as_array(x: Tensor) -> np.ndarray:
    """Return x as float32 in C order; it is copied only if it is not so already."""
    return x.float().contiguous().numpy()


def _mask(reset: Tensor | None, batch: int, time: int) -> np.ndarray:
    """Return the resets in C order; all are false where there are none."""
    if reset is None:
        return np.zeros((batch, time), np.bool_)
    return reset.contiguous().numpy()
