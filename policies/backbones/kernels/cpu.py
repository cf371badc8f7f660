"""PyTorch tensors into numba's kernels and out again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from unroll.policies.backbones.kernels import numba_kernels as kernels
from unroll.policies.backbones.kernels import numba_selective as selective

GATES = {
    "mingru": kernels.MINGRU,
    "minlstm": kernels.MINLSTM,
    "minlstm_unnormalized": kernels.MINLSTM_UNNORMALIZED,
}

LOG2_E = 1.4426950408889634  # e^x = 2^(x · log2 e): the selective kernels decay in powers of 2

GRAIN = 2**15  # numbers for each thread after the first: less is not worth the waiting for each other

MAX_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

# each kernel takes all threads, and numba's simplest threading layer aborts at a second one
_one_at_a_time = threading.Lock()
_first_process: int | None = None


def why_not() -> str | None:
    """Why no kernel may run in this process; None: it may."""
    if _first_process in (None, os.getpid()):
        return None
    return "forked from a process that ran a kernel, where GNU's OpenMP ends the child; the start method spawn is safe"


def gated_forward(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    h, last = _empty(batch, time, h0.shape[1]), _empty(*h0.shape)
    _run(kernels.gated_forward, projected, h0, _mask(reset, batch, time), *_constants(gates, candidate), h, last)
    return h.to(projected.dtype), last


def gated_backward(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    dx, dh0 = _empty(*projected.shape), _empty(*h0.shape)
    inputs = (dh, dlast, projected, h0, _mask(reset, batch, time), h)
    _run(kernels.gated_backward, *inputs, *_constants(gates, candidate), dx, dh0, _empty(batch))
    return dx.to(projected.dtype), dh0


def linear_forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    h = _empty(*a.shape)
    _run(kernels.linear_forward, a, b, h0, _mask(reset, *a.shape[:2]), reverse, h)
    return h


def linear_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dh0 = _empty(*a.shape), _empty(*a.shape), _empty(*h0.shape)
    _run(kernels.linear_backward, dh, a, h0, _mask(reset, *a.shape[:2]), reverse, h, da, db, dh0)
    return da, db, dh0


def selective_forward(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = u.shape
    y, last = _empty(*u.shape), _empty(*h0.shape)
    borders = _empty(batch, -(-time // chunk), *a.shape)
    inputs = (u, dt, a * LOG2_E, b, c, h0, _mask(reset, batch, time), chunk)
    _run(selective.selective_forward, *inputs, y, last, borders, each=len(a))
    return y, last, borders


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
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddt, db, dc = (_empty(*x.shape) for x in (u, dt, b, c))
    da, dh0 = _empty(*dlast.shape), _empty(*dlast.shape)
    inputs = (dy, dlast, u, dt, a * LOG2_E, b, c, _mask(reset, *u.shape[:2]), borders, chunk)
    _run(selective.selective_backward, *inputs, du, ddt, da, db, dc, dh0, each=len(a))
    return du, ddt, da.sum(0), db, dc, dh0


def _run(kernel: Callable[..., None], *arguments: Any, each: int = 1) -> None:
    """Tensors become float32 and contiguous on the way in; those that are so already, as outputs are, stay what they
    are. ``each``: how many numbers are computed for each one of the first argument."""
    global _first_process
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"no kernel may run here: {reason}")
    arrays = [_as_array(x) if isinstance(x, Tensor) else x for x in arguments]
    threads = torch.get_num_threads()
    with _one_at_a_time:
        first, _first_process = _first_process is None, os.getpid()
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, MAX_THREADS, 1 + arrays[0].size * each // GRAIN))
        try:
            kernel(*arrays)
        finally:
            numba.set_num_threads(before)  # that of the user's own kernels
    if first:  # when it starts its threads, numba sets how many PyTorch has: they share GNU's OpenMP
        torch.set_num_threads(threads)


def _empty(*shape: int) -> Tensor:
    """For a kernel to write to, whatever the defaults of PyTorch: what is not float32 would be written to a copy."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _as_array(x: Tensor) -> np.ndarray:
    return (x if x.dtype == torch.bool else x.float()).contiguous().numpy()


def _mask(reset: Tensor | None, batch: int, time: int) -> Tensor:
    return torch.zeros(batch, time, dtype=torch.bool, device="cpu") if reset is None else reset


def _constants(gates: str, candidate: str) -> tuple[int, tuple[np.float32, ...]]:
    return GATES[gates], kernels.CANDIDATES[candidate]
