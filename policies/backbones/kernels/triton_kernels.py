"""The recurrences on CUDA, in Triton. Equation numbers are those of ../scan.py.

One program computes one row of the batch and one block of channels. It walks through time in tiles, with an associative
scan inside a tile, and carries the last row of a tile to the next.

Everything is contiguous, and sums are float32 whatever the tensors' type. A step that lets nothing through, as at a
reset, has a = 0 exactly. What came before is dropped there and not multiplied, because 0 · NaN would be NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

MINGRU, MINLSTM, MINLSTM_UNNORMALIZED = range(3)
G, IDENTITY, TANH = range(3)


@triton.jit
def _after(a, before, b):
    """Compute a · before + b (equation 1), where a = 0 drops ``before`` whatever it is."""
    return tl.where(a == 0, b, a * before + b)


@triton.jit
def _combine(a1, b1, a2, b2):
    """Combine step 1 and then step 2 to one step: a = a1·a2, b = a2·b1 + b2."""
    return tl.where(a2 == 0, 0.0, a1 * a2), _after(a2, b1, b2)


@triton.jit
def _activate(v, CANDIDATE: tl.constexpr):
    """Compute the candidate h̃ of v and its slope; see CANDIDATES in reference.py."""
    if CANDIDATE == 0:
        s = tl.sigmoid(tl.minimum(v, 0.0))
        return tl.where(v >= 0, v + 0.5, s), tl.where(v >= 0, 1.0, s * tl.sigmoid(-v))
    elif CANDIDATE == 1:
        return v, v * 0 + 1
    else:
        s = tl.sigmoid(2 * v)
        return 2 * s - 1, 4 * s * tl.sigmoid(-2 * v)


@triton.jit
def _weights(p, mask, D, GATES: tl.constexpr):
    """Compute keep (a) and take (z or i') of equation 2 or 3, from the pre-activations at the pointers p.

    Both are a sigmoid of their own, so that no digits are lost near 1.
    """
    x = tl.load(p, mask, 0.0).to(tl.float32)
    if GATES == 0:
        return tl.sigmoid(-x), tl.sigmoid(x)
    y = tl.load(p + D, mask, 0.0).to(tl.float32)
    if GATES == 2:
        return tl.sigmoid(x), tl.sigmoid(y)
    # f/(f + i) is σ(log f - log i)
    odds = _log_sigmoid(x) - _log_sigmoid(y)
    return tl.sigmoid(odds), tl.sigmoid(-odds)


@triton.jit
def _log_sigmoid(x):
    """Compute log σ(x) without overflow."""
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _last(x, row, BT: tl.constexpr):
    """Take the last row of x [BT, BD]."""
    return tl.sum(tl.where((row == BT - 1)[:, None], x, 0.0), 0)


@triton.jit
def gated_forward(
    x, h0, reset, h, last, T, D,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, CANDIDATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute x [B, T, parts · D], h0 [B, D], reset [B, T] → h [B, T, D] and last [B, D]."""
    PARTS: tl.constexpr = 2 if GATES == 0 else 3
    b = tl.program_id(0).to(tl.int64)
    d, row = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    inside = d < D
    c = tl.load(h0 + b * D + d, inside, 0.0).to(tl.float32)
    for first in range(0, T, BT):
        t = first + row
        mask = (t < T)[:, None] & inside[None, :]
        p = x + (b * T + t)[:, None] * (PARTS * D) + d[None, :]
        keep, take = _weights(p, mask, D, GATES)
        value, _ = _activate(tl.load(p + (PARTS - 1) * D, mask, 0.0).to(tl.float32), CANDIDATE)
        # steps beyond the end keep the state as it is
        keep, update = tl.where(mask, keep, 1.0), tl.where(mask, take * value, 0.0)
        if HAS_RESET:
            keep = tl.where((tl.load(reset + b * T + t, t < T, 0) != 0)[:, None], 0.0, keep)
        # the scan starts each tile from 0; the carry is added to it
        a, s = tl.associative_scan((keep, update), 0, _combine)
        s = _after(a, c[None, :], s)
        tl.store(h + (b * T + t)[:, None] * D + d[None, :], s.to(h.dtype.element_ty), mask)
        c = _last(s, row, BT)
    tl.store(last + b * D + d, c, inside)


@triton.jit
def gated_backward(
    dh, dlast, x, h0, reset, h, dx, dh0, T, D,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, CANDIDATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute the gradients dx and dh0. Equation 4 is a scan too, over a tile whose rows are in descending time."""
    PARTS: tl.constexpr = 2 if GATES == 0 else 3
    b = tl.program_id(0).to(tl.int64)
    d, row = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    inside = d < D
    c = tl.load(dlast + b * D + d, inside, 0.0).to(tl.float32)
    start = tl.load(h0 + b * D + d, inside, 0.0).to(tl.float32)
    tiles = tl.cdiv(T, BT)
    for i in range(0, tiles):
        t = (tiles - i) * BT - 1 - row
        mask = (t < T)[:, None] & inside[None, :]
        p = x + (b * T + t)[:, None] * (PARTS * D) + d[None, :]
        q = (b * T + t)[:, None] * D + d[None, :]
        follows = (t + 1 < T)[:, None] & inside[None, :]
        # a[t+1], mostly from the cache lines of this tile
        keep_next, _ = _weights(p + PARTS * D, follows, D, GATES)
        keep_next = tl.where(follows, keep_next, 1.0)
        # h[t-1], which is h0 before the first step and nothing after a reset
        before = tl.load(h + q - D, mask & (t > 0)[:, None], 0.0).to(tl.float32)
        before = tl.where((t == 0)[:, None], start[None, :], before)
        if HAS_RESET:
            keep_next = tl.where((tl.load(reset + b * T + t + 1, t + 1 < T, 0) != 0)[:, None], 0.0, keep_next)
            begins = (tl.load(reset + b * T + t, t < T, 0) != 0)[:, None]
            before = tl.where(begins, 0.0, before)
        a, g = tl.associative_scan((keep_next, tl.load(dh + q, mask, 0.0).to(tl.float32)), 0, _combine)
        g = _after(a, c[None, :], g)
        # dx by the chain rule through the gates, which are computed again
        keep, take = _weights(p, mask, D, GATES)
        value, slope = _activate(tl.load(p + (PARTS - 1) * D, mask, 0.0).to(tl.float32), CANDIDATE)
        to = dx + (b * T + t)[:, None] * (PARTS * D) + d[None, :]
        if GATES == 0:
            tl.store(to, (g * keep * take * (value - before)).to(dx.dtype.element_ty), mask)
        else:
            not_f = tl.sigmoid(-tl.load(p, mask, 0.0).to(tl.float32))
            not_i = tl.sigmoid(-tl.load(p + D, mask, 0.0).to(tl.float32))
            if GATES == 1:
                odds = g * keep * take * (before - value)
                df, di = odds * not_f, -odds * not_i
            else:
                df, di = g * before * keep * not_f, g * value * take * not_i
            tl.store(to, df.to(dx.dtype.element_ty), mask)
            tl.store(to + D, di.to(dx.dtype.element_ty), mask)
        tl.store(to + (PARTS - 1) * D, (g * take * slope).to(dx.dtype.element_ty), mask)
        c = _last(g, row, BT)
        # the first step of all gives dh0 = a[0]·g[0]
        if i == tiles - 1:
            if HAS_RESET:
                keep = tl.where(begins, 0.0, keep)
            tl.store(dh0 + b * D + d, tl.sum(tl.where((t == 0)[:, None], _after(keep, g, 0.0), 0.0), 0), inside)


@triton.jit
def linear_forward(
    a, b, h0, reset, h, T, D,
    HAS_RESET: tl.constexpr, REVERSE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute a, b [B, T, D], h0 [B, D], reset [B, T] → h [B, T, D]. i counts steps in the order of the scan."""
    n = tl.program_id(0).to(tl.int64)
    d, row = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    inside = d < D
    c = tl.load(h0 + n * D + d, inside, 0.0).to(tl.float32)
    for first in range(0, T, BT):
        i = first + row
        t = T - 1 - i if REVERSE else i
        mask = (i < T)[:, None] & inside[None, :]
        p = (n * T + t)[:, None] * D + d[None, :]
        keep = tl.load(a + p, mask, 1.0).to(tl.float32)
        if HAS_RESET:
            keep = tl.where((tl.load(reset + n * T + t, i < T, 0) != 0)[:, None], 0.0, keep)
        k, s = tl.associative_scan((keep, tl.load(b + p, mask, 0.0).to(tl.float32)), 0, _combine)
        s = _after(k, c[None, :], s)
        tl.store(h + p, s, mask)
        c = _last(s, row, BT)


@triton.jit
def linear_backward(
    dh, a, h0, reset, h, da, db, dh0, T, D,
    HAS_RESET: tl.constexpr, REVERSE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute the gradients da, db and dh0 (equations 4 and 5), against the direction of the scan."""
    n = tl.program_id(0).to(tl.int64)
    d, row = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    inside = d < D
    c = tl.zeros([BD], tl.float32)
    start = tl.load(h0 + n * D + d, inside, 0.0).to(tl.float32)
    back: tl.constexpr = 1 if REVERSE else -1
    tiles = tl.cdiv(T, BT)
    for j in range(0, tiles):
        i = (tiles - j) * BT - 1 - row
        t = T - 1 - i if REVERSE else i
        mask = (i < T)[:, None] & inside[None, :]
        p = (n * T + t)[:, None] * D + d[None, :]
        follows = (i + 1 < T)[:, None] & inside[None, :]
        keep_next = tl.load(a + p - back * D, follows, 1.0).to(tl.float32)
        before = tl.load(h + p + back * D, mask & (i > 0)[:, None], 0.0).to(tl.float32)
        before = tl.where((i == 0)[:, None], start[None, :], before)
        if HAS_RESET:
            keep_next = tl.where((tl.load(reset + n * T + t - back, i + 1 < T, 0) != 0)[:, None], 0.0, keep_next)
            begins = (tl.load(reset + n * T + t, i < T, 0) != 0)[:, None]
            before = tl.where(begins, 0.0, before)
        # equation 4, then equation 5
        k, g = tl.associative_scan((keep_next, tl.load(dh + p, mask, 0.0).to(tl.float32)), 0, _combine)
        g = _after(k, c[None, :], g)
        tl.store(da + p, g * before, mask)
        tl.store(db + p, g, mask)
        c = _last(g, row, BT)
        # the first step of all gives dh0
        if j == tiles - 1:
            keep = tl.load(a + p, mask, 1.0).to(tl.float32)
            if HAS_RESET:
                keep = tl.where(begins, 0.0, keep)
            tl.store(dh0 + n * D + d, tl.sum(tl.where((i == 0)[:, None], _after(keep, g, 0.0), 0.0), 0), inside)
