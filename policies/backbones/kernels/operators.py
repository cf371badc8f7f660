"""The recurrences as operators that autograd, ``torch.compile`` and fake tensors know.

An operator is defined here by its signature, the shapes of its results and its gradient. The functions that compute it
are in cpu.py (numba) and cuda.py (Triton): each registers itself when its module is loaded, which ``choose_body`` does
before an operator is called. numba and Triton are therefore imported when they are first needed, and between the call
of an operator and a kernel lies no other function of ours.

Shapes: projected [B, T, parts · D]; a, b and h [B, T, D]; h0 and last [B, D]; reset [B, T]. Sums run in float32. h has
projected's type, and is float32 where it is computed from a and b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def define_operator(shapes: Callable[..., Any]) -> Any:
    """Define the operator ``unroll::<name>`` from a function that returns empty tensors of the results' shapes.

    The function is what runs on fake tensors. No device has a body yet: see ``register_kernel``.
    """
    operator = torch.library.custom_op(f"unroll::{shapes.__name__}", shapes, mutates_args=(), device_types=())
    operator.register_fake(shapes)
    return operator


def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    """Stand for the gradient of an operator that computes gradients itself.

    It is called where a second derivative needs it, and not where ``create_graph`` merely allows one.

    Raises:
        RuntimeError: Always. It says what computes second derivatives.
    """
    raise RuntimeError(
        "the compiled kernels of minGRU, minLSTM and Mamba have no second derivatives; "
        "in float64 (backbone.double()) and under torch.func PyTorch computes them, step by step"
    )


@define_operator
def gated_scan(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str, turn: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return h and the last state of minGRU or minLSTM."""
    batch, time, _ = projected.shape
    h = projected.new_empty(batch, time, h0.shape[1])
    last = h0.new_empty(h0.shape, dtype=torch.float32)
    return h, last


@define_operator
def gated_scan_backward(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
    turn: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of projected and h0."""
    return projected.new_empty(projected.shape), h0.new_empty(h0.shape, dtype=torch.float32)


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # the gates are not saved: the backward kernels compute them again from projected
    projected, h0, reset, ctx.gates, ctx.candidate, turn = inputs
    ctx.save_for_backward(projected, h0, reset, output[0], turn)


def _gated_gradients(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Any, ...]:
    # equations 4 and 5 of ../scan.py, and the chain rule through the gates
    projected, h0, reset, h, turn = ctx.saved_tensors
    form = (ctx.gates, ctx.candidate, turn)
    dprojected, dh0 = gated_scan_backward(dh, dlast, projected, h0, reset, h, *form)
    return dprojected, dh0, None, None, None, None


gated_scan.register_autograd(_gated_gradients, setup_context=_save_gated)
gated_scan_backward.register_autograd(refuse_second_derivative)


@define_operator
def linear_scan(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    """Return h of h[t] = a[t]·h[t-1] + b[t]."""
    return a.new_empty(a.shape)


@define_operator
def linear_scan_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and h0."""
    return a.new_empty(a.shape), a.new_empty(a.shape), h0.new_empty(h0.shape)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # the gradients do not depend on b
    a, _, h0, reset, ctx.reverse = inputs
    ctx.save_for_backward(a, h0, reset, output)


def _linear_gradients(ctx: Any, dh: Tensor) -> tuple[Any, ...]:
    # equations 4 and 5
    a, h0, reset, h = ctx.saved_tensors
    da, db, dh0 = linear_scan_backward(dh, a, h0, reset, h, ctx.reverse)
    return da, db, dh0, None, None


linear_scan.register_autograd(_linear_gradients, setup_context=_save_linear)
linear_scan_backward.register_autograd(refuse_second_derivative)
