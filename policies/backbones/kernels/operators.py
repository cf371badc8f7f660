"""The recurrences as operators that autograd and ``torch.compile`` know, with a body for each type of device.

Shapes: projected [B, T, parts · D], a, b and h [B, T, D], h0 and last [B, D], reset [B, T]. Sums run in float32; h has
projected's type, and float32 where it comes from a and b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import load


def body_of(device: str) -> Any:
    module, reason = load(device)
    if module is None:
        raise RuntimeError(reason)
    return module


@torch.library.custom_op("unroll::gated_scan", mutates_args=(), device_types=("cpu", "cuda"))
def gated_scan(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str
) -> tuple[Tensor, Tensor]:
    return body_of(projected.device.type).gated_forward(projected, h0, reset, gates, candidate)


@gated_scan.register_fake
def _(projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    return projected.new_empty(batch, time, h0.shape[1]), h0.new_empty(h0.shape, dtype=torch.float32)


@torch.library.custom_op("unroll::gated_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def gated_scan_backward(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
) -> tuple[Tensor, Tensor]:
    return body_of(dh.device.type).gated_backward(dh, dlast, projected, h0, reset, h, gates, candidate)


@gated_scan_backward.register_fake
def _(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
) -> tuple[Tensor, Tensor]:
    return projected.new_empty(projected.shape), h0.new_empty(h0.shape, dtype=torch.float32)


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, h0, reset, ctx.gates, ctx.candidate = inputs
    ctx.save_for_backward(projected, h0, reset, output[0])


def _gated_gradients(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Any, ...]:
    projected, h0, reset, h = ctx.saved_tensors
    dprojected, dh0 = gated_scan_backward(dh, dlast, projected, h0, reset, h, ctx.gates, ctx.candidate)
    return dprojected, dh0, None, None, None


gated_scan.register_autograd(_gated_gradients, setup_context=_keep_gated)


@torch.library.custom_op("unroll::linear_scan", mutates_args=(), device_types=("cpu", "cuda"))
def linear_scan(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    return body_of(a.device.type).linear_forward(a, b, h0, reset, reverse)


@linear_scan.register_fake
def _(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.custom_op("unroll::linear_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def linear_scan_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return body_of(dh.device.type).linear_backward(dh, a, h0, reset, h, reverse)


@linear_scan_backward.register_fake
def _(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), h0.new_empty(h0.shape)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, h0, reset, ctx.reverse = inputs
    ctx.save_for_backward(a, h0, reset, output)


def _linear_gradients(ctx: Any, dh: Tensor) -> tuple[Any, ...]:
    a, h0, reset, h = ctx.saved_tensors
    return *linear_scan_backward(dh, a, h0, reset, h, ctx.reverse), None, None


linear_scan.register_autograd(_linear_gradients, setup_context=_keep_linear)
