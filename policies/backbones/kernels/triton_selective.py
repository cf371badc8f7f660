"""Mamba's selective scan on CUDA, compiled by Triton. Equation numbers are those of ../selective.py.

One program computes BD channels of one row, STEPS steps at a time: all loads of these steps are issued first, then the
states of each channel are computed one after the other. So a state stays in registers over STEPS steps, and nothing of
the size [B, T, D, N] is ever in memory. Between two stretches the states lie in an output, [B, N, D]. Where there are
too few rows and channels to fill a GPU, the states are divided among several programs too, and their sums added up
afterwards.

Decays are powers of 2, and a is given times log2 e.
"""

import triton
import triton.language as tl

from unroll.policies.backbones.kernels.triton_kernels import _load, _where

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def selective_forward(
    u, dt, a, b, c, h0, reset, y, last, borders, T, D,
    N: tl.constexpr, GROUP: tl.constexpr, HAS_RESET: tl.constexpr, STEPS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute y, the last state and ``borders`` [B, ⌈T / STEPS⌉, N, D], the states before every STEPS-th step.

    u, dt [B, T, D], a [N, D], b, c [B, T, N], h0, last [B, N, D], reset [B, T]. y [groups, B, T, D] is the sum over
    each group of states.
    """
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BD + tl.arange(0, BD)
    group = tl.program_id(2)
    inside = d < D
    for n in range(group * GROUP, (group + 1) * GROUP):
        at = (row * N + n) * D + d
        tl.store(last + at, _load(h0 + at, inside), inside)

    for first in range(0, T, STEPS):
        steps, outputs = (), ()
        for k in tl.static_range(STEPS):
            t = tl.minimum(first + k, T - 1)
            # a step beyond the end has Δ = 0, which keeps the state
            mask = _where(first + k < T, inside)
            begins = False
            if HAS_RESET:
                # beyond the end nothing begins: the last state stays as it is
                begins = (tl.load(reset + row * T + t) != 0) & (first + k < T)
            dt_t = _load(dt + (row * T + t) * D + d, mask)
            steps = steps + ((dt_t, dt_t * _load(u + (row * T + t) * D + d, mask), begins),)
            outputs = outputs + (tl.zeros([BD], tl.float32),)

        for n in range(group * GROUP, (group + 1) * GROUP):
            at = (row * N + n) * D + d
            h = _load(last + at, inside)
            a_n = _load(a + n * D + d, inside)
            to = ((row * tl.cdiv(T, STEPS) + first // STEPS) * N + n) * D + d
            tl.store(borders + to, h, inside)
            b_n = b + (row * T + first) * N + n
            c_n = c + (row * T + first) * N + n
            sums = ()
            for k in tl.static_range(STEPS):
                dt_t, v_t, begins = steps[k]
                exists = first + k < T
                b_t, c_t = _load(b_n + k * N, exists), _load(c_n + k * N, exists)
                if HAS_RESET:
                    h = tl.where(begins, 0.0, h)
                h = tl.exp2(dt_t * a_n) * h + v_t * b_t
                sums = sums + (outputs[k] + h * c_t,)
            outputs = sums
            tl.store(last + at, h, inside)

        for k in tl.static_range(STEPS):
            to = ((group * tl.num_programs(0) + row) * T + first + k) * D + d
            tl.store(y + to, outputs[k], _where(first + k < T, inside))


@triton.jit
def _state_gradients(
    h, steps, gradients, a, b, c, da, dh0, db, dc, left, inside,
    N: tl.constexpr, HAS_RESET: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one stretch for one state of each channel, and add to those of v and of the exponents.

    h [BD] is the state before the stretch, of which ``left`` steps are within the sequence. All else are pointers to
    this state's numbers at the first step.
    """
    a_n = _load(a, inside)

    # Forwards: make the states again by equation 1, and dC = Σ h·dy by equation 2.
    states = ()
    for k in tl.static_range(STEPS):
        dt_t, v_t, dy_t, begins = steps[k]
        if HAS_RESET:
            h = tl.where(begins, 0.0, h)
        decay = tl.exp2(dt_t * a_n)
        states = states + ((h, decay),)
        h = decay * h + v_t * _load(b + k * N, k < left)
        tl.store(dc + k * N, tl.sum(tl.where(inside, h * dy_t, 0.0), 0), k < left)

    # Backwards: the exponent Δ·a has the gradient g·decay·h[t-1], which goes to Δ and to a.
    g = _load(dh0, inside)
    of_a = _load(da, inside)
    sums = ()
    for k in tl.static_range(STEPS - 1, -1, -1):
        dt_t, v_t, dy_t, begins = steps[k]
        before, decay = states[k]
        of_v, of_exponent = gradients[k]
        g += dy_t * _load(c + k * N, k < left)
        tl.store(db + k * N, tl.sum(tl.where(inside, g * v_t, 0.0), 0), k < left)
        of_v += g * _load(b + k * N, k < left)
        g *= decay
        exponent = g * before
        of_a += exponent * dt_t
        sums = ((of_v, of_exponent + exponent * a_n),) + sums
        if HAS_RESET:
            g = tl.where(begins, 0.0, g)
    tl.store(dh0, g, inside)
    tl.store(da, of_a, inside)
    return sums


@triton.jit
def selective_backward(
    dy, dlast, u, dt, a, b, c, reset, borders, du, ddt, da, db, dc, dh0, T, D,
    N: tl.constexpr, GROUP: tl.constexpr, HAS_RESET: tl.constexpr, STEPS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute the gradients. Sums are cut into what each program adds to them: du and ddt [groups, B, T, D] are those
    of each group of states, da [B, N, D] is that of each row, db and dc [D / BD, B, T, N] of each block of channels.

    States are made again from each border; dh0 [B, N, D] holds the gradients of the states between two stretches.
    """
    row, block, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    for n in range(group * GROUP, (group + 1) * GROUP):
        at = (row * N + n) * D + d
        tl.store(dh0 + at, _load(dlast + at, inside), inside)
        tl.store(da + at, tl.zeros([BD], tl.float32), inside)

    of_block = (block * tl.num_programs(0) + row) * T * N
    stretches = tl.cdiv(T, STEPS)
    for done in range(0, stretches):
        first = (stretches - 1 - done) * STEPS
        steps, gradients = (), ()
        for k in tl.static_range(STEPS):
            t = tl.minimum(first + k, T - 1)
            mask = _where(first + k < T, inside)
            begins = False
            if HAS_RESET:
                # beyond the end nothing begins: the gradient of the last state passes through
                begins = (tl.load(reset + row * T + t) != 0) & (first + k < T)
            at = (row * T + t) * D + d
            dt_t, dy_t = _load(dt + at, mask), _load(dy + at, mask)
            steps = steps + ((dt_t, dt_t * _load(u + at, mask), dy_t, begins),)
            # of v = Δ·u and of the exponent Δ·a
            gradients = gradients + ((tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)),)

        for n in range(group * GROUP, (group + 1) * GROUP):
            h = _load(borders + ((row * stretches + first // STEPS) * N + n) * D + d, inside)
            gradients = _state_gradients(
                h, steps, gradients, a + n * D + d, b + (row * T + first) * N + n, c + (row * T + first) * N + n,
                da + (row * N + n) * D + d, dh0 + (row * N + n) * D + d, db + of_block + first * N + n,
                dc + of_block + first * N + n, T - first, inside, N, HAS_RESET, STEPS,
            )  # fmt: skip

        for k in tl.static_range(STEPS):
            mask = _where(first + k < T, inside)
            at = (row * T + first + k) * D + d
            to = (group * tl.num_programs(0) + row) * T * D + (first + k) * D + d
            of_v, of_exponent = gradients[k]
            # the exponent's base was 2
            tl.store(ddt + to, of_exponent * LN_2 + of_v * _load(u + at, mask), mask)
            tl.store(du + to, of_v * steps[k][0], mask)
