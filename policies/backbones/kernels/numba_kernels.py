"""The recurrences on the CPU, compiled by numba: parallel over the batch, vectorised over channels, one pass.

Everything is float32 and C-contiguous. Kernels are cached on disk, so they are plain functions of this one file: the
cache does not see a change in another. Loops over channels hold no call and no branch that depends on data, and read
rows, not x[n, t, d]: only so does LLVM vectorise them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

_MATH = {"contract", "arcp", "nsz"}  # not "nnan": what is not finite must stay so
_INLINE: dict[str, Any] = {"inline": "always", "fastmath": _MATH, "error_model": "numpy"}
_KERNEL: dict[str, Any] = {"parallel": True, "nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}

MINGRU, MINLSTM, MINLSTM_UNNORMALIZED = range(3)
_TILE = 2**15  # floats of pre-activations that are asked for ahead: with the rest of their rows, half of a core's cache
_LINE = 16  # floats

f32 = np.float32
_0, _HALF, _1 = f32(0), f32(0.5), f32(1)


@njit(**_INLINE)
def _exp(x):
    """e^x to 2 units in the last place (the polynomial of Cephes' expf), for |x| ≤ 87; NaN stays NaN. numba's own is
    not vectorised."""
    x = f32(-87) if x < f32(-87) else x
    x = f32(87) if x > f32(87) else x
    n = np.floor(x * f32(1.44269504) + _HALF)
    r = x - n * f32(0.693359375) + n * f32(2.12194440e-4)  # x - n ln 2, ln 2 in two parts
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + _1
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(**_INLINE)
def _candidate(v, s, scale, threshold, above, below):
    """The candidate of v, where s = σ(scale · v): every activation in one form, see CANDIDATES."""
    return v + above if v >= threshold else scale * s + below


# scale, threshold, above, below: v + above from the threshold on, scale · σ(scale · v) + below before it
CANDIDATES = {
    "g": (f32(1), f32(0), f32(0.5), f32(0)),
    "identity": (f32(1), f32(-np.inf), f32(0), f32(0)),
    "tanh": (f32(2), f32(np.nan), f32(0), f32(-1)),  # nothing is at least NaN, also not infinity
}


@njit(**_INLINE)
def _forward_step(gates, candidate, x, c, h):
    """h [D] and the new carry c [D] from the carry before and the pre-activations x [PARTS · D]."""
    scale, threshold, above, below = candidate
    size = len(c)
    v = x[-size:]
    if gates == MINGRU:
        k = x[:size]
        for d in range(size):
            e = _exp(-k[d])
            z, s = _1 / (_1 + e), _1 / (_1 + _exp(-scale * v[d]))
            y = (e * z) * c[d] + z * _candidate(v[d], s, scale, threshold, above, below)  # e·z is 1 - z, to all digits
            c[d] = y
            h[d] = y
    elif gates == MINLSTM:
        j, k = x[:size], x[size : 2 * size]
        for d in range(size):
            f, i = _1 + _exp(-j[d]), _1 + _exp(-k[d])  # one over the gates: f'/(f' + i') = i/(f + i)
            s = _1 / (_1 + _exp(-scale * v[d]))
            r = _1 / (f + i)
            y = (i * r) * c[d] + (f * r) * _candidate(v[d], s, scale, threshold, above, below)
            c[d] = y
            h[d] = y
    else:
        j, k = x[:size], x[size : 2 * size]
        for d in range(size):
            f, i = _1 + _exp(-j[d]), _1 + _exp(-k[d])
            s = _1 / (_1 + _exp(-scale * v[d]))
            y = c[d] / f + _candidate(v[d], s, scale, threshold, above, below) / i
            c[d] = y
            h[d] = y


@njit(**_INLINE)
def _backward_step(gates, candidate, x, dh, before, c, dx):
    """dx [PARTS · D], and in c the gradient of the state ``before``; on entry c is that of this step's state."""
    scale, threshold, above, below = candidate
    size = len(c)
    v, dv = x[-size:], dx[-size:]
    if gates == MINGRU:
        k, dk = x[:size], dx[:size]
        for d in range(size):
            g = dh[d] + c[d]
            e, u = _exp(-k[d]), _exp(-scale * v[d])
            z, s = _1 / (_1 + e), _1 / (_1 + u)
            a = e * z
            value = _candidate(v[d], s, scale, threshold, above, below)
            dk[d] = g * z * a * (value - before[d])
            dv[d] = g * z * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = a * g
    elif gates == MINLSTM:
        j, k, dj, dk = x[:size], x[size : 2 * size], dx[:size], dx[size : 2 * size]
        for d in range(size):
            g = dh[d] + c[d]
            ef, ei, u = _exp(-j[d]), _exp(-k[d]), _exp(-scale * v[d])
            f, i, s = _1 + ef, _1 + ei, _1 / (_1 + u)
            r = _1 / (f + i)
            a, z = i * r, f * r
            q = g * a * z * (before[d] - _candidate(v[d], s, scale, threshold, above, below))
            dj[d] = q * (ef / f)
            dk[d] = -q * (ei / i)
            dv[d] = g * z * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = a * g
    else:
        j, k, dj, dk = x[:size], x[size : 2 * size], dx[:size], dx[size : 2 * size]
        for d in range(size):
            g = dh[d] + c[d]
            ef, ei, u = _exp(-j[d]), _exp(-k[d]), _exp(-scale * v[d])
            f, i, s = _1 / (_1 + ef), _1 / (_1 + ei), _1 / (_1 + u)
            dj[d] = g * before[d] * f * f * ef
            dk[d] = g * _candidate(v[d], s, scale, threshold, above, below) * i * i * ei
            dv[d] = g * i * (_1 if v[d] >= threshold else scale * scale * s * s * u)
            c[d] = f * g


@njit(**_INLINE)
def _touch(x, n, first, end):
    """Read every cache line of x[n, first:end]. The recurrence goes back in time, the hardware's prefetchers do not:
    what has been touched forwards just before is in the cache (twice as fast where the data are not)."""
    total = _0
    for t in range(first, end):
        for d in range(0, x.shape[2], _LINE):
            total += x[n, t, d]
    return total


@njit(**_KERNEL)
def gated_forward(x, h0, reset, gates, candidate, h, last):
    """x [B, T, PARTS · D], h0 [B, D], reset [B, T] → h [B, T, D] and last [B, D]."""
    batch, time, _ = h.shape
    for n in prange(batch):
        c = last[n]
        c[:] = h0[n]
        for t in range(time):
            if reset[n, t]:
                c[:] = _0
            _forward_step(gates, candidate, x[n, t], c, h[n, t])


@njit(**_KERNEL)
def gated_backward(dh, dlast, x, h0, reset, h, gates, candidate, dx, dh0, touched):
    """The gradients dx and dh0; touched [B] keeps the reads ahead from being optimised away."""
    batch, time, size = h.shape
    rows = max(1, _TILE // x.shape[2])
    for n in prange(batch):
        c, nothing, total = dh0[n], np.zeros(size, np.float32), _0
        c[:] = dlast[n]
        end = time
        while end > 0:
            first = max(0, end - rows)
            total += _touch(x, n, first, end) + _touch(h, n, first, end) + _touch(dh, n, first, end)
            for t in range(first, end):  # the same for what will be written: a read would map fresh pages twice
                for d in range(0, dx.shape[2], _LINE):
                    dx[n, t, d] = _0
            for t in range(end - 1, first - 1, -1):
                before = nothing if reset[n, t] else (h[n, t - 1] if t > 0 else h0[n])
                _backward_step(gates, candidate, x[n, t], dh[n, t], before, c, dx[n, t])
                if reset[n, t]:
                    c[:] = _0
            end = first
        touched[n] = total


@njit(**_KERNEL)
def linear_forward(a, b, h0, reset, reverse, h):
    """a, b [B, T, D], h0 [B, D], reset [B, T] → h [B, T, D]; ``reverse``: from the last step to the first."""
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
    batch, time, size = h.shape
    for n in prange(batch):
        c, nothing = dh0[n], np.zeros(size, np.float32)
        c[:] = _0
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
