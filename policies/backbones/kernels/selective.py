"""Mamba's selective scan as an operator, defined as those in operators.py.

Shapes: u, dt and y [B, T, D]; a [N, D]; b and c [B, T, N]; h0 and last [B, N, D]; reset [B, T]. All are float32 but
reset. States too have their channels last, because the kernel's vectors run over channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unroll.policies.backbones.kernels.operators import define_operator, refuse_second_derivative

# Steps from one state that is kept for the gradients to the next. With 16 states per channel, what is kept is as large
# as u.
CHUNK = 16


@define_operator
def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state and the states [B, ⌈T / CHUNK⌉, N, D] before every ``CHUNK``-th step.

    From the latter the backward pass computes all other states again.
    """
    batch, time, _ = u.shape
    n_chunks = -(-time // CHUNK)
    return u.new_empty(u.shape), h0.new_empty(h0.shape), u.new_empty(batch, n_chunks, *a.shape)


@define_operator
def selective_scan_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    reset: Tensor | None,
    borders: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, dt, a, b, c and h0."""
    du, ddt, da, db, dc, dh0 = (x.new_empty(x.shape) for x in (u, dt, a, b, c, dlast))
    return du, ddt, da, db, dc, dh0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, dt, a, b, c, _, reset = inputs
    borders = output[2]
    ctx.mark_non_differentiable(borders)
    ctx.save_for_backward(u, dt, a, b, c, reset, borders)


def _gradients(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = selective_scan_backward(dy, dlast, *ctx.saved_tensors)
    return *gradients, None


selective_scan.register_autograd(_gradients, setup_context=_save)
selective_scan_backward.register_autograd(refuse_second_derivative)
