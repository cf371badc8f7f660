"""The linear recurrence that minGRU, minLSTM and Mamba share, and its gated forms.

    (1)  h[t] = a[t]·h[t-1] + b[t]                                    all operations elementwise, h[-1] given
    (2)  a = 1 - z,  b = z·h̃;   z = σ(k)                              minGRU, section 3.1 of the paper
    (3)  a = f',  b = i'·h̃;     f' = f/(f + i), i' = i/(f + i)        minLSTM, section 3.2; f and i are sigmoids
    (4)  g[t] = dh[t] + a[t+1]·g[t+1]                                 the gradient of h[t], a scan in reverse
    (5)  da[t] = g[t]·h[t-1],  db[t] = g[t],  dh[-1] = a[0]·g[0]
    (6)  a ← s·(m·a + 1 - m),  b ← m·b                                s = 1, m = 2: signed; s = -1, m = 1: alternating

The paper is "Were RNNs All We Needed?" (Feng et al. 2024, arXiv 2410.01201). Its algorithm 3 computes the recurrence in
log space. Here it runs in linear space: in log space a reset is log 0, and float32 loses up to three digits more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import choose_body, operators, reference
from unroll.policies.backbones.kernels.reference import PARTS, Candidate, Gates, activate_gates


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
    reverse: bool = False,
) -> Tensor:
    """Compute all states h [B, T, …] of equation 1, with h[-1] = ``h0`` [B, …] (None: zeros).

    a and b are [B, T, …]. Where ``reset`` [B, T] is true nothing is carried over, not even NaN: h[t] = b[t]. The scan
    runs at least in float32, whatever the inputs' type or autocast. With ``reverse`` it runs from the last step to the
    first, h[t] = a[t]·h[t+1] + b[t] with h[T] = ``h0``: this is how returns-to-go and advantages are computed.

    ``backend``: ``cpu`` and ``cuda`` are the compiled kernels (float32 inside), ``reference`` is PyTorch step by step.
    ``auto`` is the kernel of the tensors' device, or the reference for float64, complex numbers and where there is no
    kernel.

    Raises:
        ValueError: A shape is wrong, or the backend is unknown or cannot be used.
    """
    check_shapes(a.shape, b.shape[:1] + b.shape[2:], h0, reset)
    if a.shape != b.shape:
        raise ValueError(f"a and b have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    # a sum over many steps loses too many digits in 16 bits
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if h0 is not None and h0.is_complex():
        dtype = torch.promote_types(dtype, h0.dtype)
    a = a.to(dtype)
    b = b.to(dtype)
    if h0 is not None:
        h0 = h0.to(dtype)

    if choose_body(backend, a) == "reference":
        return reference.linear_scan(a, b, h0, reset, reverse)

    # The operator takes one axis of channels, and always a state.
    batch, time, *channels = b.shape
    if h0 is None:
        h0 = b.new_zeros(batch, *channels)
    size = math.prod(channels)
    flat = (batch, time, size)
    h = operators.linear_scan(a.reshape(flat), b.reshape(flat), h0.reshape(batch, size), reset, reverse)
    return h.view(b.shape)


def gated_scan(
    projected: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    gates: Gates = "mingru",
    candidate: Candidate = "g",
    backend: str = "auto",
    turn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence of minGRU or minLSTM in one pass: all states h [B, T, D] and the last one [B, D].

    ``projected`` holds the pre-activations, which are linear maps of x: [B, T, 2·D] of (gate, candidate) for minGRU
    (equation 2), or [B, T, 3·D] of (forget, input, candidate) for minLSTM (equation 3). ``minlstm_unnormalized`` does
    not divide f and i by their sum. ``turn`` [2, D] has s and m of equation 6; None: both are 1.

    h has projected's type. The last state, which is carried on, is at least float32, as all sums are. The rest is as
    for ``linear_scan``. The kernel on the CPU takes pre-activations beyond ±87, where a gate is 0 or 1 to all digits
    of float32, as ±87; of minLSTM's gates, if both are shut, the difference counts.
    """
    if projected.ndim != 3 or projected.shape[2] % PARTS[gates]:
        raise ValueError(f"projected [B, T, {PARTS[gates]}·D] cannot have the shape {tuple(projected.shape)}")
    batch, _, width = projected.shape
    size = width // PARTS[gates]
    check_shapes(projected.shape, (batch, size), h0, reset)
    if turn is not None and turn.shape != (2, size):
        raise ValueError(f"turn [2, D] is (2, {size}) here, not {tuple(turn.shape)}")
    # projected keeps its type: the gates and sums are float32 inside
    dtype = torch.promote_types(projected.dtype, torch.float32)
    if h0 is not None:
        h0 = h0.to(dtype)

    # equation 2 or 3, then equation 1; the operators do both at once
    if choose_body(backend, projected) == "reference":
        keep, update = activate_gates(projected, gates, candidate, turn)
        h = reference.linear_scan(keep, update, h0, reset, False)
        # a view of the last state would keep the whole sequence allocated
        return h.to(projected.dtype), h[:, -1].clone()

    if h0 is None:
        h0 = projected.new_zeros(batch, size, dtype=dtype)
    return operators.gated_scan(projected, h0, reset, gates, candidate, turn)


def check_shapes(x: torch.Size, state: tuple[int, ...], h0: Tensor | None, reset: Tensor | None) -> None:
    """Check the shapes of what runs over a sequence x [B, T, …].

    A compiled kernel would read and write beyond the tensors that it was given, and an index would mix rows.

    Raises:
        ValueError: A shape is wrong, or reset is not bool.
    """
    if len(x) < 2 or x[1] < 1:
        raise ValueError(f"a sequence [B, T, …] has at least one step, its shape is not {tuple(x)}")
    if h0 is not None and h0.shape != state:
        raise ValueError(f"the state before [B, …] is {tuple(state)} here, not {tuple(h0.shape)}")
    if reset is not None and (reset.shape != x[:2] or reset.dtype != torch.bool):
        raise ValueError(f"reset [B, T] is bool and {tuple(x[:2])} here, not {reset.dtype} and {tuple(reset.shape)}")
