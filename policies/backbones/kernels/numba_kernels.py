"""The recurrences on the CPU, compiled by numba: parallel over the batch, vectorised over channels, in one pass.

Equation numbers are those of ../scan.py. Everything is float32 and C-contiguous.

Rules for changes here:

* Kernels are cached on disk, and the cache does not notice a change in another file. So they are plain functions of
  this file alone.
* LLVM vectorises a loop over channels only if it holds no call that is not inlined and no branch that depends on data,
  and reads rows (x_t[d]) and not x[n, t, d]. How a loop is written decides its speed: measure after each change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

# Not "nnan": what is not finite must stay so.
_MATH = {"contract", "arcp", "nsz"}
_INLINE: dict[str, Any] = {"forceinline": True, "fastmath": _MATH, "error_model": "numpy"}
_KERNEL: dict[str, Any] = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

MINGRU, MINLSTM, MINLSTM_UNNORMALIZED = range(3)

# Floats of pre-activations that are read ahead. With the rest of their rows they fill half of a core's cache.
_TILE = 2**15
# Floats in a cache line.
_LINE = 16

f32 = np.float32
_0, _HALF, _1, _2 = f32(0), f32(0.5), f32(1), f32(2)


@njit(**_INLINE)
def _exp(x):
    """Compute e^x to 2 units in the last place, for |x| ≤ 87; NaN stays NaN. numba's own exp is not vectorised.

    The polynomial is that of Cephes' expf: e^x = 2^n · e^r with n = round(x / ln 2).
    """
    x = f32(-87) if x < f32(-87) else x
    x = f32(87) if x > f32(87) else x
    n = np.floor(x * f32(1.44269504) + _HALF)
    # r = x - n ln 2, with ln 2 in two parts so that no digits are lost
    r = x - n * f32(0.693359375) + n * f32(2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + _1
    # 2^n, by its bits
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(**_INLINE)
def _both_shut(j, k):
    """Compute by how much the pre-activations of minLSTM's gates are raised, so that the lower one is at least -80.

    f/(f + i) depends on their difference alone where both gates are shut; ``_exp`` would make them equal. Where one of
    them is open, the weight of the other is 0 before and after.
    """
    low = j if j < k else k
    low = f32(-1e7) if low < f32(-1e7) else low  # a float32 beyond has no 80 to spare
    return f32(-80) - low if low < f32(-80) else _0


@njit(**_INLINE)
def _candidate(v, s, scale, threshold, above, below):
    """Compute the candidate h̃ of v, where s = σ(scale · v). Every activation has this one form, see CANDIDATES."""
    return v + above if v >= threshold else scale * s + below


# (scale, threshold, above, below): v + above from the threshold on, scale · σ(scale · v) + below before it.
CANDIDATES = {
    "g": (f32(1), f32(0), f32(0.5), f32(0)),
    "identity": (f32(1), f32(-np.inf), f32(0), f32(0)),
    # nothing is at least NaN, not even infinity
    "tanh": (f32(2), f32(np.nan), f32(0), f32(-1)),
}


@njit(**_INLINE)
def _forward_step(gates, candidate, turn, x, c, h):
    """Compute h [D] and the new carry c [D] from the carry before and the pre-activations x [PARTS · D].

    ``turn`` [2, D] has s and m of equation 6, or is None where both are 1, which numba compiles by itself.
    """
    scale, threshold, above, below = candidate
    size = len(c)
    v = x[-size:]
    if gates == MINGRU:
        # equation 2: e·z = e^-k/(1 + e^-k) is 1 - z, to all digits
        k = x[:size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            e = _exp(-k[d])
            z, s = _1 / (_1 + e), _1 / (_1 + _exp(-scale * v[d]))
            y = (sign * (e + rest) * z) * c[d] + (m * z) * _candidate(v[d], s, scale, threshold, above, below)
            c[d] = y
            h[d] = y
    elif gates == MINLSTM:
        # equation 3. f and i are 1 over the gates here, so that the normalised forget gate is i/(f + i).
        j, k = x[:size], x[size : 2 * size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            o = _both_shut(j[d], k[d])
            f, i = _1 + _exp(-j[d] - o), _1 + _exp(-k[d] - o)
            s = _1 / (_1 + _exp(-scale * v[d]))
            r = _1 / (f + i)
            y = (sign * (i + rest * f) * r) * c[d] + (m * f * r) * _candidate(v[d], s, scale, threshold, above, below)
            c[d] = y
            h[d] = y
    else:
        # equation 3 without normalisation; f and i are 1 over the gates
        j, k = x[:size], x[size : 2 * size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            f, i = _1 + _exp(-j[d]), _1 + _exp(-k[d])
            s = _1 / (_1 + _exp(-scale * v[d]))
            y = (sign * (m / f + rest)) * c[d] + m * _candidate(v[d], s, scale, threshold, above, below) / i
            c[d] = y
            h[d] = y


@njit(**_INLINE)
def _backward_step(gates, candidate, turn, x, dh, before, c, dx):
    """Compute dx [PARTS · D], and in c the gradient of the state ``before``, a·g of equation 4.

    On entry c is a[t+1]·g[t+1], so that g = dh + c. The gates are computed again from x. The slope of the candidate is
    1 from its threshold on, and scale²·s·(1 - s) before it, with u·s = 1 - s.
    """
    scale, threshold, above, below = candidate
    size = len(c)
    v, dv = x[-size:], dx[-size:]
    if gates == MINGRU:
        # dk = g·(h̃ - h[t-1])·z·(1 - z), where a = 1 - z
        k, dk = x[:size], dx[:size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            g = dh[d] + c[d]
            e, u = _exp(-k[d]), _exp(-scale * v[d])
            z, s = _1 / (_1 + e), _1 / (_1 + u)
            value = _candidate(v[d], s, scale, threshold, above, below)
            dk[d] = g * (m * z) * (e * z) * (value - sign * before[d])
            dv[d] = g * (m * z) * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = (sign * (e + rest) * z) * g
    elif gates == MINLSTM:
        # With a = f' and z = i' = 1 - f': df' = g·(h[t-1] - h̃). The gates' odds are i/f, so that the slopes of a are
        # a·z·(1 - σ(j)) and -a·z·(1 - σ(k)).
        j, k, dj, dk = x[:size], x[size : 2 * size], dx[:size], dx[size : 2 * size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            g = dh[d] + c[d]
            o = _both_shut(j[d], k[d])
            ef, ei, u = _exp(-j[d] - o), _exp(-k[d] - o), _exp(-scale * v[d])
            f, i, s = _1 + ef, _1 + ei, _1 / (_1 + u)
            r = _1 / (f + i)
            a, z = i * r, f * r
            q = g * a * (m * z) * (sign * before[d] - _candidate(v[d], s, scale, threshold, above, below))
            dj[d] = q * (ef / f)
            dk[d] = -q * (ei / i)
            dv[d] = g * (m * z) * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = (sign * (i + rest * f) * r) * g
    else:
        # f and i are the gates themselves, and f·ef = 1 - f
        j, k, dj, dk = x[:size], x[size : 2 * size], dx[:size], dx[size : 2 * size]
        for d in range(size):
            sign = _1 if turn is None else turn[0, d]
            m = _1 if turn is None else turn[1, d]
            rest = _1 - m
            g = dh[d] + c[d]
            ef, ei, u = _exp(-j[d]), _exp(-k[d]), _exp(-scale * v[d])
            f, i, s = _1 / (_1 + ef), _1 / (_1 + ei), _1 / (_1 + u)
            dj[d] = g * (sign * before[d]) * (m * f) * f * ef
            dk[d] = g * _candidate(v[d], s, scale, threshold, above, below) * (m * i) * i * ei
            dv[d] = g * (m * i) * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = (sign * (m * f + rest)) * g


@njit(**_INLINE)
def _touch(x, n, first, end):
    """Read every cache line of x[n, first:end], and return a sum of what was read.

    The backward recurrence goes back in time, and the hardware's prefetchers do not. What was touched forwards just
    before is in the cache, which is twice as fast for data that were not.
    """
    total = _0
    for t in range(first, end):
        for d in range(0, x.shape[2], _LINE):
            total += x[n, t, d]
    return total


@njit(**_KERNEL)
def gated_forward(x, h0, reset, gates, candidate, turn, h, last):
    """Compute equations 1 and 2 or 3: x [B, T, PARTS · D], h0 [B, D], reset [B, T] → h [B, T, D] and last [B, D]."""
    batch, time, _ = h.shape
    for n in prange(batch):
        # the carry is written straight into the last state
        c = last[n]
        c[:] = h0[n]
        for t in range(time):
            if reset[n, t]:
                c[:] = _0
            _forward_step(gates, candidate, turn, x[n, t], c, h[n, t])


@njit(**_KERNEL)
def gated_backward(dh, dlast, x, h0, reset, h, gates, candidate, turn, dx, dh0, touched):
    """Compute the gradients dx and dh0. touched [B] keeps the reads ahead from being optimised away."""
    batch, time, size = h.shape
    rows = max(1, _TILE // x.shape[2])
    for n in prange(batch):
        c, nothing, total = dh0[n], np.zeros(size, np.float32), _0
        c[:] = dlast[n]
        end = time
        # one tile of steps after the other, from the last
        while end > 0:
            first = max(0, end - rows)
            total += _touch(x, n, first, end) + _touch(h, n, first, end) + _touch(dh, n, first, end)
            # The rows that will be written are touched by a write: a read would map fresh pages twice.
            for t in range(first, end):
                for d in range(0, dx.shape[2], _LINE):
                    dx[n, t, d] = _0
            for t in range(end - 1, first - 1, -1):
                before = nothing if reset[n, t] else (h[n, t - 1] if t > 0 else h0[n])
                _backward_step(gates, candidate, turn, x[n, t], dh[n, t], before, c, dx[n, t])
                # no gradient goes back through a reset, not even NaN
                if reset[n, t]:
                    c[:] = _0
            end = first
        touched[n] = total


@njit(**_KERNEL)
def linear_forward(a, b, h0, reset, reverse, h):
    """Compute equation 1: a, b [B, T, D], h0 [B, D], reset [B, T] → h [B, T, D].

    ``reverse`` goes from the last step to the first.
    """
    batch, time, size = h.shape
    for n in prange(batch):
        c = h0[n].copy()
        for i in range(time):
            t = time - 1 - i if reverse else i
            if reset[n, t]:
                c[:] = _0
            a_t, b_t, h_t = a[n, t], b[n, t], h[n, t]
            for d in range(size):
                y = a_t[d] * c[d] + b_t[d]
                c[d] = y
                h_t[d] = y


@njit(**_KERNEL)
def linear_backward(dh, a, h0, reset, reverse, h, da, db, dh0):
    """Compute the gradients da, db and dh0 (equations 4 and 5)."""
    batch, time, size = h.shape
    for n in prange(batch):
        c, nothing = dh0[n], np.zeros(size, np.float32)
        c[:] = _0
        # i counts steps in the order of the scan, which is gone through backwards; c is a[t+1]·g[t+1]
        for i in range(time - 1, -1, -1):
            t = time - 1 - i if reverse else i
            before = nothing if reset[n, t] else (h0[n] if i == 0 else h[n, t + 1 if reverse else t - 1])
            a_t, dh_t, da_t, db_t = a[n, t], dh[n, t], da[n, t], db[n, t]
            for d in range(size):
                g = dh_t[d] + c[d]
                da_t[d] = g * before[d]
                db_t[d] = g
                c[d] = g * a_t[d]
            if reset[n, t]:
                c[:] = _0
