"""Mamba's selective scan on the CPU, compiled by numba: parallel over the batch, vectorised over channels.

Equation numbers are those of ../selective.py. States are [N, D] here, channels last.

The rules of ``numba_kernels.py`` hold here too: everything is float32 and C-contiguous, nothing is imported that
numba's cache would have to watch, and rows are read as slices. Two more keep LLVM vectorising:

* No array is read in a loop that writes another row of it.
* The way back in time is read from an array of indices. LLVM tests once, before a loop over time, whether the arrays in
  it overlap. Where rows are walked downwards it takes the scalar loop, which is three to five times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

# Without "reassoc" sums over channels are not vectorised. Never "nnan": what is not finite must stay so.
_MATH = {"contract", "arcp", "nsz", "reassoc"}
_INLINE: dict[str, Any] = {"inline": "always", "fastmath": _MATH, "error_model": "numpy"}
_KERNEL: dict[str, Any] = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

f32 = np.float32
_0, _HALF, _1 = f32(0), f32(0.5), f32(1)
_LN_2 = f32(0.6931471805599453)


@njit(**_INLINE)
def _exp2(x):
    """Compute 2^x to 1 unit in the last place. It is 0 below 2^-126 and ∞ from 2^127.5 on, and NaN stays NaN.

    The polynomial is a minimax fit on ±1/2 that is exactly 1 at 0: a state that hardly decays must not drift. The base
    is 2 because x - n is exact then. A reduction by ln 2 in two parts would not survive "reassoc".
    """
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
    # 2^n, by its bits
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(**_INLINE)
def _state_gradients(
    n, first, end, backwards, dy, dt, v, a, b, c, reset, h, before, decay, g, dv, exponents, da, db, dc
):
    """Compute the gradients of one chunk, steps first … end - 1, for state n of each channel.

    h [D] is the state before the chunk. g [D] is the gradient of the state after it, and becomes that of h. Sums are
    added to dv, exponents [T, D] and da [D]; db and dc [T, N] are set.
    """
    size = len(a)

    # Forwards: make the states again by equation 1, and dC = Σ h·dy by equation 2.
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

    # Backwards: g[t] = dy[t]·C[t] + decay[t+1]·g[t+1]. v is Δ·u, and the exponent Δ·A has the gradient
    # g·decay·h[t-1], which goes to Δ and to A.
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
    """Compute y, the last state and ``borders`` [B, ⌈T / chunk⌉, N, D], the states before every ``chunk``-th step.

    u, dt, y [B, T, D], a [N, D] (times log2 e), b, c [B, T, N], h0, last [B, N, D], reset [B, T].
    """
    batch, time, size = u.shape
    for i in prange(batch):
        h, v = last[i], np.empty(size, np.float32)
        h[:] = h0[i]
        for t in range(time):
            if t % chunk == 0:
                borders[i, t // chunk] = h
            # a border is stored before its step's reset is applied
            if reset[i, t]:
                h[:] = _0
            dt_t, u_t, y_t = dt[i, t], u[i, t], y[i, t]
            for d in range(size):
                v[d] = dt_t[d] * u_t[d]
                y_t[d] = _0
            # equations 1 and 2, one state of all channels after the other
            for n in range(len(a)):
                h_n, a_n, b_n, c_n = h[n], a[n], b[i, t, n], c[i, t, n]
                for d in range(size):
                    x = _exp2(dt_t[d] * a_n[d]) * h_n[d] + v[d] * b_n
                    h_n[d] = x
                    y_t[d] += x * c_n


@njit(**_KERNEL)
def selective_backward(dy, dlast, u, dt, a, b, c, reset, borders, chunk, du, ddt, da, db, dc, dh0):
    """Compute the gradients; da [B, N, D] is that of each row of the batch.

    States are made again from each chunk's border, so that they and their decays stay in the cache. To keep them all
    would take ``chunk`` times as many bytes.
    """
    batch, time, size = u.shape
    backwards = np.arange(time - 1, -1, -1)
    for i in prange(batch):
        g, h = dh0[i], np.empty(size, np.float32)
        v, before = np.empty((chunk, size), np.float32), np.empty((chunk, size), np.float32)
        decay = np.empty((chunk, size), np.float32)
        g[:] = dlast[i]
        da[i] = _0
        # one chunk after the other, from the last
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
            # So far du is the gradient of v = dt·u, and ddt that of the exponents in base 2, without the part of v.
            for t in range(first, end):
                dt_t, u_t, du_t, ddt_t = dt[i, t], u[i, t], du[i, t], ddt[i, t]
                for d in range(size):
                    ddt_t[d] = ddt_t[d] * _LN_2 + du_t[d] * u_t[d]
                    du_t[d] *= dt_t[d]
