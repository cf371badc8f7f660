"""A linear map whose float32 products go to oneDNN on a CPU, which is twice as fast as MKL where the CPU is AMD's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WORTH_IT = 2**22  # multiplications in a product; a call has a fixed cost

# x Wᵀ + b. PyTorch asks oneDNN for products of 16 bits alone, but has this operator for its compiler
_product: Any = None
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _product = torch.ops.mkldnn._linear_pointwise


class Linear(nn.Linear):
    """``nn.Linear``: the same parameters, the same function, in float32 on a CPU by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            torch.compiler.is_exporting()  # first: an exported step has no limit to its batch
            or x.numel() * self.out_features < WORTH_IT
            or _product is None
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or x.shape[-1] != self.in_features  # an error, which PyTorch words better
            or self.weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or torch._C._are_functorch_transforms_active()  # torch.func asks an operator for more than a gradient
        ):
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b and its three gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()  # of a view with a stride of 0 oneDNN makes hundreds of times the work
        dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        x, dy = x.flatten(0, -2), dy.flatten(0, -2)
        # the narrower matrix goes first: a fifth faster
        wide = dy.shape[1] > x.shape[1]
        dweight = product(x.t(), dy.t()).t() if wide else product(dy.t(), x.t())
        return dx, dweight, dy.sum(0) if ctx.needs_input_grad[2] else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., N] times weightᵀ [N, M], plus bias [M]."""
    return _opaque(x, weight, bias) if torch.compiler.is_compiling() else _product(x, weight, bias, "none", [], "")


@torch.library.custom_op("unroll::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for the compiler, which takes oneDNN's operator in a form of its own alone."""
    return _product(x, weight, bias, "none", [], "")


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
