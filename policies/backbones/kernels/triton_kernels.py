"""The recurrences on CUDA, compiled by Triton. Equation numbers are those of ../scan.py.

One program computes BD channels of one row over one chunk of steps, step after step: nothing but the state goes from a
step to the next, and it stays in registers. While UNROLL steps are computed, the next ones are being loaded.

Where a batch has too few rows and channels to fill a GPU, a row is cut into chunks that are computed side by side, in
three launches: ``chunk_effect`` finds what each chunk does to the state before it, ``carry`` goes over the chunks and
finds the state before each, and ``forward`` or ``backward`` starts from there. This reads the inputs twice.

All forms of the recurrence share these kernels. ``x`` points to the pre-activations of the gates (or to a of equation
1) and ``v`` to those of the candidate (or to b); both have rows of PARTS · D numbers. i counts steps in the order of
the scan and t is the index in memory, which differs where REVERSE.

Checked here, since a mistake only shows on a GPU: the interpreter computes the recurrences, and the machine code for a
Hopper GPU spills no registers (tests/policies/test_triton.py).
"""

import triton
import triton.language as tl

MINGRU = tl.constexpr(0)
MINLSTM = tl.constexpr(1)
MINLSTM_UNNORMALIZED = tl.constexpr(2)
LINEAR = tl.constexpr(3)

G = tl.constexpr(0)
IDENTITY = tl.constexpr(1)
TANH = tl.constexpr(2)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _inverse(x):
    """Compute 1/x for x in [1, 4]. This is two instructions where a division is about eight."""
    r = tl.rsqrt(x)
    return r * r


@triton.jit
def _sigmoids(x):
    """Compute σ(-x) and σ(x) from one exponential, both to all digits however small they are."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    large = _inverse(1 + e)
    small = e * large
    return tl.where(x > 0, small, large), tl.where(x > 0, large, small)


@triton.jit
def _weights(x, y, GATES: tl.constexpr):
    """Compute keep (a) and take (z or i') of equation 2 or 3 from the pre-activations. y is read by minLSTM alone."""
    x = x.to(tl.float32)
    y = y.to(tl.float32)
    if GATES == LINEAR:
        return x, x
    elif GATES == MINGRU:
        return _sigmoids(x)
    elif GATES == MINLSTM_UNNORMALIZED:
        return _sigmoids(x)[1], _sigmoids(y)[1]
    else:
        # f/(f + i) = (1 + e^-y)/(2 + e^-x + e^-y); the greatest of the three terms is made 1, so that none overflows
        greatest = tl.maximum(tl.maximum(-x, -y), 0.0)
        one = tl.exp2(-greatest * LOG2_E)
        of_x = tl.exp2((-x - greatest) * LOG2_E)
        of_y = tl.exp2((-y - greatest) * LOG2_E)
        inverse = _inverse(2 * one + of_x + of_y)
        return (one + of_y) * inverse, (one + of_x) * inverse


@triton.jit
def _signed(keep, take, s, m, GATES: tl.constexpr, SIGNED: tl.constexpr):
    """Compute the weights of h[t-1] and of h̃, by equation 6 where gates are signed."""
    if not SIGNED:
        return keep, take
    elif GATES == MINLSTM_UNNORMALIZED:
        return s * (m * keep + (1 - m)), m * take
    else:
        return s * (keep - (m - 1) * take), m * take  # they sum to 1 before


@triton.jit
def _activate(v, GATES: tl.constexpr, CANDIDATE: tl.constexpr):
    """Compute the candidate h̃ of v and its slope; see CANDIDATES in reference.py."""
    v = v.to(tl.float32)
    if GATES == LINEAR or CANDIDATE == IDENTITY:
        return v, tl.full(v.shape, 1.0, tl.float32)
    elif CANDIDATE == G:
        e = tl.exp2(tl.minimum(v, 0.0) * LOG2_E)
        large = _inverse(1 + e)
        small = e * large
        return tl.where(v >= 0, v + 0.5, small), tl.where(v >= 0, 1.0, small * large)
    else:
        negative, positive = _sigmoids(2 * v)
        return positive - negative, 4 * positive * negative


@triton.jit
def _update(take, value, GATES: tl.constexpr):
    """Compute b of equation 1."""
    if GATES == LINEAR:
        return value
    else:
        return take * value


@triton.jit
def _where(condition, inside):
    """Compute ``condition & inside`` of a scalar and a mask, which the interpreter would make a number."""
    return tl.where(condition, inside, False)


@triton.jit
def _load(p, mask):
    return tl.load(p, mask, 0.0).to(tl.float32)


@triton.jit
def _turn(turn, d, D, mask, SIGNED: tl.constexpr):
    """Load s and m of equation 6, which are 1 where no gate is signed."""
    if SIGNED:
        return _load(turn + d, mask), _load(turn + D + d, mask)
    else:
        return 1.0, 1.0


@triton.jit
def _place(i, T, REVERSE: tl.constexpr):
    """Return where step i of the scan is in memory, and for a step that is not there a place that is."""
    i = tl.maximum(tl.minimum(i, T - 1), 0)
    return T - 1 - i if REVERSE else i


@triton.jit
def _load_steps(
    x, v, reset, dh, h, n, first, begin, stop, T, D, d,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, PARTS: tl.constexpr,
    BACKWARD: tl.constexpr, STATES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Load what UNROLL steps need, from step ``first`` on or, with BACKWARD, down from it.

    This is a tuple for each step: the pre-activations of one or two gates and of the candidate [BD], whether an episode
    begins there, with BACKWARD the gradient of h, and with STATES the state before the step. What is not needed is
    something that is there anyway. Types are those in memory: to convert a number is to wait for it.
    """
    steps = ()
    for k in tl.static_range(UNROLL):
        i = first - k if BACKWARD else first + k
        mask = _where((i >= begin) & (i < stop), d < D)
        t = n * T + _place(i, T, REVERSE)
        of_gate = tl.load(x + t * (PARTS * D) + d, mask, 0.0)
        of_second_gate = of_gate
        if GATES == MINLSTM or GATES == MINLSTM_UNNORMALIZED:
            of_second_gate = tl.load(x + t * (PARTS * D) + D + d, mask, 0.0)
        of_value = tl.load(v + t * (PARTS * D) + d, mask, 0.0)
        begins = i < begin - 1  # never, for a step that is there
        if HAS_RESET:
            begins = tl.load(reset + t) != 0
        gradient = of_gate
        if BACKWARD:
            gradient = tl.load(dh + t * D + d, mask, 0.0)
        before = of_gate
        if STATES:
            before = tl.load(h + (n * T + _place(i - 1, T, REVERSE)) * D + d, _where(i > 0, mask), 0.0)
        steps = steps + ((of_gate, of_second_gate, of_value, begins, gradient, before),)
    return steps


@triton.jit
def forward(
    x, v, reset, turn, start, h, last, T, D, CHUNK,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, CANDIDATE: tl.constexpr, SIGNED: tl.constexpr, REVERSE: tl.constexpr,
    PARTS: tl.constexpr, UNROLL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute h [B, T, D] and last [B, D] from the state before each chunk, start [B, chunks, D]."""
    n, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    begin, stop = chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, T)

    s, m = _turn(turn, d, D, inside, SIGNED)
    c = _load(start + (n * chunks + chunk) * D + d, inside)
    steps = _load_steps(
        x, v, reset, x, x, n, begin, begin, stop, T, D, d, HAS_RESET, GATES, REVERSE, PARTS, False, False, UNROLL
    )
    for first in range(begin, stop, UNROLL):
        following = _load_steps(
            x, v, reset, x, x, n, first + UNROLL, begin, stop, T, D, d,
            HAS_RESET, GATES, REVERSE, PARTS, False, False, UNROLL,
        )  # fmt: skip
        for k in tl.static_range(UNROLL):
            of_gate, of_second_gate, of_value, begins, _, _ = steps[k]
            exists = first + k < stop
            keep, take = _weights(of_gate, of_second_gate, GATES)
            keep, take = _signed(keep, take, s, m, GATES, SIGNED)
            value, _ = _activate(of_value, GATES, CANDIDATE)
            # a reset lets nothing through, not even NaN
            before = tl.where(begins, 0.0, keep * c) if HAS_RESET else keep * c
            c = tl.where(exists, before + _update(take, value, GATES), c)
            t = _place(first + k, T, REVERSE)
            tl.store(h + (n * T + t) * D + d, c.to(h.dtype.element_ty), _where(exists, inside))
        steps = following
    tl.store(last + n * D + d, c, _where(chunk == chunks - 1, inside))


@triton.jit
def backward(
    dh, follows, x, v, reset, turn, h0, h, dx, dv, dh0, T, D, CHUNK,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, CANDIDATE: tl.constexpr, SIGNED: tl.constexpr, REVERSE: tl.constexpr,
    PARTS: tl.constexpr, UNROLL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute the gradients dx, dv and dh0 (equations 4 and 5), from the last step to the first.

    What is carried is a[t]·g[t], the gradient of the state before a step, so that no step needs the gate of the next.
    ``follows`` [B, chunks, D] is that of the state after each chunk.
    """
    n, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    begin, stop = chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, T)

    s, m = _turn(turn, d, D, inside, SIGNED)
    state = _load(h0 + n * D + d, inside)
    c = _load(follows + (n * chunks + chunk) * D + d, inside)
    steps = _load_steps(
        x, v, reset, dh, h, n, stop - 1, begin, stop, T, D, d, HAS_RESET, GATES, REVERSE, PARTS, True, True, UNROLL
    )
    for done in range(0, stop - begin, UNROLL):
        following = _load_steps(
            x, v, reset, dh, h, n, stop - 1 - done - UNROLL, begin, stop, T, D, d,
            HAS_RESET, GATES, REVERSE, PARTS, True, True, UNROLL,
        )  # fmt: skip
        for k in tl.static_range(UNROLL):
            of_gate, of_second_gate, of_value, begins, gradient, before = steps[k]
            i = stop - 1 - done - k
            before = tl.where(i == 0, state, before.to(tl.float32))
            if HAS_RESET:
                before = tl.where(begins, 0.0, before)
            g = gradient.to(tl.float32) + c

            keep, take = _weights(of_gate, of_second_gate, GATES)
            kept, taken = _signed(keep, take, s, m, GATES, SIGNED)
            value, slope = _activate(of_value, GATES, CANDIDATE)
            exists = i >= begin
            mask = _where(exists, inside)
            to = (n * T + _place(i, T, REVERSE)) * (PARTS * D) + d
            if GATES == LINEAR:
                tl.store(dx + to, g * before, mask)
                tl.store(dv + to, g, mask)
            else:
                of_weights = m * g if SIGNED else g
                before = s * before if SIGNED else before
                if GATES == MINGRU:
                    tl.store(dx + to, (of_weights * keep * take * (value - before)).to(dx.dtype.element_ty), mask)
                else:
                    not_f, _ = _sigmoids(of_gate.to(tl.float32))
                    not_i, _ = _sigmoids(of_second_gate.to(tl.float32))
                    if GATES == MINLSTM:
                        of_odds = of_weights * keep * take * (before - value)
                        of_f, of_i = of_odds * not_f, -of_odds * not_i
                    else:
                        of_f = of_weights * before * keep * not_f
                        of_i = of_weights * value * take * not_i
                    tl.store(dx + to, of_f.to(dx.dtype.element_ty), mask)
                    tl.store(dx + to + D, of_i.to(dx.dtype.element_ty), mask)
                tl.store(dv + to, (g * taken * slope).to(dv.dtype.element_ty), mask)
            passed = tl.where(begins, 0.0, kept * g) if HAS_RESET else kept * g
            c = tl.where(exists, passed, c)
        steps = following
    tl.store(dh0 + n * D + d, c, _where(chunk == 0, inside))


@triton.jit
def chunk_effect(
    x, v, reset, turn, dh, products, sums, T, D, CHUNK,
    HAS_RESET: tl.constexpr, GATES: tl.constexpr, CANDIDATE: tl.constexpr, SIGNED: tl.constexpr, REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr, PARTS: tl.constexpr, UNROLL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute what each chunk does to what is carried into it: c becomes products · c + sums, both [B, chunks, D].

    With BACKWARD this is what ``backward`` carries, from the last step to the first.
    """
    n, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    begin, stop = chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, T)

    s, m = _turn(turn, d, D, inside, SIGNED)
    c, product = tl.zeros([BD], tl.float32), tl.full([BD], 1.0, tl.float32)
    at = stop - 1 if BACKWARD else begin
    steps = _load_steps(
        x, v, reset, dh, x, n, at, begin, stop, T, D, d, HAS_RESET, GATES, REVERSE, PARTS, BACKWARD, False, UNROLL
    )
    for done in range(0, stop - begin, UNROLL):
        at = stop - 1 - done - UNROLL if BACKWARD else begin + done + UNROLL
        following = _load_steps(
            x, v, reset, dh, x, n, at, begin, stop, T, D, d, HAS_RESET, GATES, REVERSE, PARTS, BACKWARD, False, UNROLL
        )
        for k in tl.static_range(UNROLL):
            of_gate, of_second_gate, of_value, begins, gradient, _ = steps[k]
            keep, take = _weights(of_gate, of_second_gate, GATES)
            keep, take = _signed(keep, take, s, m, GATES, SIGNED)
            if HAS_RESET:
                keep = tl.where(begins, 0.0, keep)
            if BACKWARD:
                after = keep * (gradient.to(tl.float32) + c)
                if HAS_RESET:
                    after = tl.where(begins, 0.0, after)
            else:
                value, _ = _activate(of_value, GATES, CANDIDATE)
                after = tl.where(begins, 0.0, keep * c) if HAS_RESET else keep * c
                after += _update(take, value, GATES)
            passes = product * keep
            if HAS_RESET:
                passes = tl.where(begins, 0.0, passes)  # 0 times NaN would be NaN
            exists = done + k < stop - begin
            c = tl.where(exists, after, c)
            product = tl.where(exists, passes, product)
        steps = following
    to = (n * chunks + chunk) * D + d
    tl.store(products + to, product, inside)
    tl.store(sums + to, c, inside)


@triton.jit
def carry(products, sums, first, carried, D, CHUNKS, BACKWARD: tl.constexpr, BD: tl.constexpr):
    """Compute what is carried into each chunk [B, chunks, D], given ``first`` [B, D] for the first of them."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    c = _load(first + n * D + d, inside)
    for k in tl.range(0, CHUNKS, num_stages=4):
        chunk = CHUNKS - 1 - k if BACKWARD else k
        at = (n * CHUNKS + chunk) * D + d
        product, sum = _load(products + at, inside), _load(sums + at, inside)
        tl.store(carried + at, c, inside)
        # a reset in the chunk lets nothing through, not even NaN
        c = tl.where(product == 0, sum, product * c + sum)
