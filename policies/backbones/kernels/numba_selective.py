"""Mamba's selective scan on the CPU, compiled by numba: parallel over the batch, vectorised over channels.

As in ``numba_kernels.py``, everything is float32 and C-contiguous, nothing is imported that numba's cache would have
to watch, and rows are read as slices. Two things more keep LLVM vectorising: no array is read in a loop that writes
another row of it, and the way back in time is read from an array of indices. LLVM tests once, before a loop over time,
whether the arrays in it overlap, and takes the scalar loop where rows are walked downwards: three to five times slower.
States are [N, D] here, channels last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

_MATH = {"contract", "arcp", "nsz", "reassoc"}  # reassoc: or sums over channels are not vectorised; never "nnan"
_INLINE: dict[str, Any] = {"inline": "always", "fastmath": _MATH, "error_model": "numpy"}
_KERNEL: dict[str, Any] = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

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
def _state_gradients(
    n, first, end, backwards, dy, dt, v, a, b, c, reset, h, before, decay, g, dv, exponents, da, db, dc
):
    """Steps first … end - 1 of state n of each channel, where h [D] is the state before them. g [D] is the gradient of
    the last state, and becomes that of h. Sums go to dv, exponents [T, D] and da [D]; db, dc [T, N] are set."""
    size = len(a)
    for t in range(first, end):
        if reset[t]:
            h[:] = _0
        before_t, decay_t, v_t, dt_t, dy_t = before[t - first], decay[t - first], v[t - first], dt[t], dy[t]
        b_t, total = b[t, n], _0
        for d in range(size):
            x, e = h[d], _exp2(dt_t[d] * a[d])
            before_t[d] = x
            decay_t[d] = e
            x = e * x + v_t[d] * b_t
            h[d] = x
            total += x * dy_t[d]
        dc[t, n] = total
    for t in backwards[-end : len(backwards) - first]:
        before_t, decay_t, v_t, dt_t, dy_t = before[t - first], decay[t - first], v[t - first], dt[t], dy[t]
        dv_t, exponents_t, b_t, c_t, total = dv[t], exponents[t], b[t, n], c[t, n], _0
        for d in range(size):
            x = g[d] + dy_t[d] * c_t
            total += x * v_t[d]
            dv_t[d] += x * b_t
            x *= decay_t[d]
            g[d] = x
            x *= before_t[d]
            exponents_t[d] += x * a[d]
            da[d] += x * dt_t[d]
        db[t, n] = total
        if reset[t]:
            g[:] = _0


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
    """The gradients, da [B, N, D] for each row of the batch. States are made anew from a chunk's border, so that they
    and their decays stay in the cache: to keep them all would be ``chunk`` times the memory."""
    batch, time, size = u.shape
    backwards = np.arange(time - 1, -1, -1)
    for i in prange(batch):
        g, h = dh0[i], np.empty(size, np.float32)
        v, before = np.empty((chunk, size), np.float32), np.empty((chunk, size), np.float32)
        decay = np.empty((chunk, size), np.float32)
        g[:] = dlast[i]
        da[i] = _0
        for k in range(borders.shape[1] - 1, -1, -1):
            first, end = k * chunk, min(time, (k + 1) * chunk)
            for t in range(first, end):
                dt_t, u_t, v_t, du_t, ddt_t = dt[i, t], u[i, t], v[t - first], du[i, t], ddt[i, t]
                for d in range(size):
                    v_t[d] = dt_t[d] * u_t[d]
                    du_t[d] = _0
                    ddt_t[d] = _0
            for n in range(len(a)):
                h[:] = borders[i, k, n]
                _state_gradients(
                    n, first, end, backwards, dy[i], dt[i], v, a[n], b[i], c[i], reset[i], h, before, decay,
                    g[n], du[i], ddt[i], da[i, n], db[i], dc[i],
                )  # fmt: skip
            for t in range(first, end):  # du is the gradient of dt · u by now, and ddt lacks it
                dt_t, u_t, du_t, ddt_t = dt[i, t], u[i, t], du[i, t], ddt[i, t]
                for d in range(size):
                    ddt_t[d] = ddt_t[d] * _LN_2 + du_t[d] * u_t[d]
                    du_t[d] *= dt_t[d]
