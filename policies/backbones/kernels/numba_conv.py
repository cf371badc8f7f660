"""The short causal convolution on the CPU, compiled by numba: parallel over the batch, vectorised over channels.

The rules of ``numba_kernels.py`` hold here too. x [B, T, D] are the inputs, before [B, K - 1, D] those that came before
them, weight [K, D] by lag. What a step may read is counted and not masked: ``seen`` steps of its episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

# Not "nnan": what is not finite must stay so.
_MATH = {"contract", "arcp", "nsz"}
_KERNEL: dict[str, Any] = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

_0 = np.float32(0)


@njit(**_KERNEL)
def conv_forward(x, before, reset, weight, bias, y, last):
    """Write y [B, T, D] and the inputs that the next sequence has before it, last [B, K - 1, D]."""
    batch, time, size = x.shape
    n_before = before.shape[1]
    for n in prange(batch):
        seen = n_before
        for t in range(time):
            if reset[n, t]:
                seen = 0
            out = y[n, t]
            now = x[n, t]
            w = weight[0]
            for d in range(size):
                out[d] = bias[d] + w[d] * now[d]
            for lag in range(1, seen + 1):
                shown = x[n, t - lag] if t >= lag else before[n, n_before + t - lag]
                w = weight[lag]
                for d in range(size):
                    out[d] += w[d] * shown[d]
            seen = min(seen + 1, n_before)
        for lag in range(1, n_before + 1):
            out = last[n, n_before - lag]
            if lag > seen:
                out[:] = _0
            else:
                out[:] = x[n, time - lag] if time >= lag else before[n, n_before + time - lag]


@njit(**_KERNEL)
def conv_backward(dy, dlast, x, before, reset, weight, dx, dbefore, dweight, dbias):
    """Write the gradients of x, before, and for each row of the batch of weight [B, K, D] and bias [B, D]."""
    batch, time, size = x.shape
    n_before = before.shape[1]
    for n in prange(batch):
        dbefore[n] = _0
        dweight[n] = _0
        dbias[n] = _0
        seen = n_before
        for t in range(time):
            if reset[n, t]:
                seen = 0
            g = dy[n, t]
            now = x[n, t]
            into = dx[n, t]
            w = weight[0]
            dw = dweight[n, 0]
            db = dbias[n]
            for d in range(size):
                into[d] = w[d] * g[d]
            for d in range(size):
                dw[d] += now[d] * g[d]
            for d in range(size):
                db[d] += g[d]
            for lag in range(1, seen + 1):
                shown = x[n, t - lag] if t >= lag else before[n, n_before + t - lag]
                into = dx[n, t - lag] if t >= lag else dbefore[n, n_before + t - lag]
                w = weight[lag]
                dw = dweight[n, lag]
                for d in range(size):
                    into[d] += w[d] * g[d]
                for d in range(size):
                    dw[d] += shown[d] * g[d]
            seen = min(seen + 1, n_before)
        for lag in range(1, seen + 1):
            g = dlast[n, n_before - lag]
            into = dx[n, time - lag] if time >= lag else dbefore[n, n_before + time - lag]
            for d in range(size):
                into[d] += g[d]
