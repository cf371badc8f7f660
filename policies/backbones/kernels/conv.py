"""The short causal convolution as an operator, defined as those in operators.py. It has a body on the CPU alone.

Shapes: x and y [B, T, D]; before and last [B, K - 1, D]; weight [K, D]; bias [D]; reset [B, T]. y and last have x's
type; sums run in float32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unroll.policies.backbones.kernels.operators import define_operator, refuse_second_derivative


@define_operator
def causal_conv(x: Tensor, before: Tensor, weight: Tensor, bias: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return y and the inputs before the next sequence."""
    return x.new_empty(x.shape), x.new_empty(before.shape)


@define_operator
def causal_conv_backward(
    dy: Tensor, dlast: Tensor, x: Tensor, before: Tensor, weight: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, before, weight and bias."""
    dx, dbefore, dweight = (a.new_empty(a.shape) for a in (x, before, weight))
    return dx, dbefore, dweight, weight.new_empty(weight.shape[1:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, before, weight, _, reset = inputs
    ctx.save_for_backward(x, before, weight, reset)


def _gradients(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Any, ...]:
    return *causal_conv_backward(dy, dlast, *ctx.saved_tensors), None


causal_conv.register_autograd(_gradients, setup_context=_save)
causal_conv_backward.register_autograd(refuse_second_derivative)
