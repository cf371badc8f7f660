"""Mamba's selective scan as an operator that autograd and ``torch.compile`` know, on the CPU; see ``../selective.py``.

Shapes: u, dt, y [B, T, D], a [N, D], b, c [B, T, N], h0 and last [B, N, D], reset [B, T], all float32 but reset. Also
of the states the channels are last: vectors run over them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unroll.policies.backbones.kernels.operators import body_of

CHUNK = 16  # steps from one kept state to the next: with 16 states for each channel, what is kept is as large as u


@torch.library.custom_op("unroll::selective_scan", mutates_args=(), device_types="cpu")
def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states [B, ⌈T / CHUNK⌉, N, D] from which the backward pass makes the others anew."""
    return body_of("cpu").selective_forward(u, dt, a, b, c, h0, reset, CHUNK)


@selective_scan.register_fake
def _(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = u.shape
    return u.new_empty(u.shape), h0.new_empty(h0.shape), u.new_empty(batch, -(-time // CHUNK), *a.shape)


@torch.library.custom_op("unroll::selective_scan_backward", mutates_args=(), device_types="cpu")
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
    """The gradients of u, dt, a, b, c and h0."""
    return body_of("cpu").selective_backward(dy, dlast, u, dt, a, b, c, reset, borders, CHUNK)


@selective_scan_backward.register_fake
def _(
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
    du, ddt, da, db, dc, dh0 = (x.new_empty(x.shape) for x in (u, dt, a, b, c, dlast))
    return du, ddt, da, db, dc, dh0


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, dt, a, b, c, _, reset = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(u, dt, a, b, c, reset, output[2])


def _gradients(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *selective_scan_backward(dy, dlast, *ctx.saved_tensors), None


selective_scan.register_autograd(_gradients, setup_context=_keep)
