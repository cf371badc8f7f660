"""Mamba's selective scan on the CPU, compiled by numba: parallel over the batch, vectorised over channels.

As in ``numba_kernels.py``, everything is float32 and C-contiguous, and nothing is imported that numba's cache would have
to watch. Rows are read as slices, and the choice between two rows is one of indices and not of arrays: LLVM must see
that they do not overlap, or it does not vectorise. States are [N, D] here, channels last.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

_MATH = {"contract", "arcp", "nsz", "reassoc"}  # reassoc: or sums over channels are not vectorised; never "nnan"
_INLINE = {"inline": "always", "fastmath": _MATH, "error_model": "numpy"}
_KERNEL = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

f32 = np.float32
_0, _HALF, _1 = f32(0), f32(0.5), f32(1)
_LN_2 = f32(0.6931471805599453)


@njit(**_INLINE)
def _exp2(x):
    """2^x to 1 unit in the last place, 0 below 2^-126 and ∞ from 2^127.5 on; NaN stays NaN. The polynomial is a
    minimax fit on ±1/2 that is exactly 1 at 0: a state that hardly decays must not drift. Base 2 because x - n is
    exact: a reduction by ln 2 in two parts would not survive "reassoc"."""
    x = f32(-127) if x < f32(-127) else x
    x = f32(128) if x > f32(128) else x
    n = np.floor(x + _HALF)
    r = x - n
    p = f32(1.5353362e-4)
    p = p * r + f32(1.3398875e-3)
    p = p * r + f32(9.6184369e-3)
    p = p * r + f32(5.5503324e-2)
    p = p * r + f32(2.4022648e-1)
    p = p * r + f32(6.9314718e-1)
    p = p * r + _1
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(**_INLINE)
def _advance(dt, a, before, v, b, decay, after):
    for d in range(len(a)):
        e = _exp2(dt[d] * a[d])
        decay[d] = e
        after[d] = e * before[d] + v[d] * b


@njit(**_INLINE)
def _retreat(dy, c, b, dt, a, before, decay, g, state_gradient, dv, exponents, da):
    """On entry g is the gradient of this step's state from later ones, then that of the state ``before``."""
    for d in range(len(a)):
        x = g[d] + dy[d] * c
        state_gradient[d] = x
        dv[d] += x * b
        x *= decay[d]
        g[d] = x
        x *= before[d]
        exponents[d] += x * a[d]
        da[d] += x * dt[d]


@njit(**_INLINE)
def _dot(x, y):
    total = _0
    for d in range(len(x)):
        total += x[d] * y[d]
    return total


@njit(**_KERNEL)
def selective_forward(u, dt, a, b, c, h0, reset, chunk, y, last, borders):
    """u, dt, y [B, T, D], a [N, D] (times log2 e), b, c [B, T, N], h0, last [B, N, D], reset [B, T], and ``borders``
    [B, ⌈T / chunk⌉, N, D]: the states before every ``chunk``-th step."""
    batch, time, size = u.shape
    for i in prange(batch):
        h, v = last[i], np.empty(size, np.float32)
        h[:] = h0[i]
        for t in range(time):
            if t % chunk == 0:
                borders[i, t // chunk] = h
            if reset[i, t]:
                h[:] = _0
            dt_t, u_t, y_t = dt[i, t], u[i, t], y[i, t]
            for d in range(size):
                v[d] = dt_t[d] * u_t[d]
                y_t[d] = _0
            for n in range(len(a)):
                h_n, a_n, b_n, c_n = h[n], a[n], b[i, t, n], c[i, t, n]
                for d in range(size):
                    x = _exp2(dt_t[d] * a_n[d]) * h_n[d] + v[d] * b_n
                    h_n[d] = x
                    y_t[d] += x * c_n


@njit(**_KERNEL)
def selective_backward(dy, dlast, u, dt, a, b, c, reset, borders, chunk, du, ddt, da, db, dc, dh0):
    """The gradients, da [B, N, D] for each row of the batch. A chunk's states are made anew from its border, state by
    state, so that they and their decays stay in the cache: to keep all of them is ``chunk`` times the memory."""
    batch, time, size = u.shape
    nothing = chunk + 1
    for i in prange(batch):
        g = dh0[i]
        g[:] = dlast[i]
        da[i] = _0
        h, decay = np.zeros((chunk + 2, size), np.float32), np.empty((chunk, size), np.float32)
        v = np.empty((chunk, size), np.float32)
        for k in range(borders.shape[1] - 1, -1, -1):
            first, end = k * chunk, min(time, (k + 1) * chunk)
            for t in range(first, end):
                dt_t, u_t, v_t, du_t, ddt_t = dt[i, t], u[i, t], v[t - first], du[i, t], ddt[i, t]
                for d in range(size):
                    v_t[d] = dt_t[d] * u_t[d]
                    du_t[d] = _0
                    ddt_t[d] = _0
            for n in range(len(a)):
                a_n, g_n, da_n = a[n], g[n], da[i, n]
                h[0] = borders[i, k, n]
                for t in range(first, end):
                    s = t - first
                    before = h[nothing if reset[i, t] else s]
                    _advance(dt[i, t], a_n, before, v[s], b[i, t, n], decay[s], h[s + 1])
                for t in range(end - 1, first - 1, -1):
                    s = t - first
                    before, after = h[nothing if reset[i, t] else s], h[s + 1]
                    dc[i, t, n] = _dot(dy[i, t], after)
                    _retreat(
                        dy[i, t], c[i, t, n], b[i, t, n], dt[i, t], a_n, before, decay[s], g_n, after,
                        du[i, t], ddt[i, t], da_n,
                    )  # fmt: skip
                    db[i, t, n] = _dot(after, v[s])
                    if reset[i, t]:
                        g_n[:] = _0
            for t in range(first, end):  # so far du is the gradient of dt · u, and ddt lacks it
                dt_t, u_t, du_t, ddt_t = dt[i, t], u[i, t], du[i, t], ddt[i, t]
                for d in range(size):
                    ddt_t[d] = ddt_t[d] * _LN_2 + du_t[d] * u_t[d]
                    du_t[d] *= dt_t[d]
