"""Layers that every backbone is made of, in the forms that are fast on a CPU."""

from __future__ import annotations

import contextlib
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


LEVELS = 2**16  # of a random number of 16 bits


class Dropout(nn.Dropout):
    """``nn.Dropout``, whose Bernoulli draws are a tenth of a small model's update on a CPU. There, four channels share
    the 64 bits of one draw: 16 bits each, so that ``p`` is rounded to a multiple of 1/65536."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not self.training or dropped in (0, LEVELS):
            return super().forward(x)
        draws = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - dropped)))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.forward(x)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def drop(layer: nn.Dropout, x: Tensor) -> Tensor:
    """x itself, without a dispatch, unless the layer is training."""
    return layer(x) if layer.training else x


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context of the tensors' own types; where there is no autocast it costs nothing."""
    autocast = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext()
