"""The layers that backbones are made of, in forms that are fast on a CPU.

``Linear`` and ``Dropout`` are PyTorch's modules with the same parameters and the same function, for training:

* float32 products go to oneDNN, which on AMD's CPUs is twice as fast as MKL, where PyTorch sends them;
* dropout draws a quarter as many random numbers, whose cost is a tenth of a small model's update.

``linear``, ``norm`` and ``drop`` call a layer as a plain function, for acting: in a step of a few rows the call of an
``nn.Module`` costs as much as its arithmetic. Hooks on a layer that is called this way do not run.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.kernels import is_transformed

# Products with fewer multiplications stay with PyTorch: calling oneDNN has a fixed cost.
WORTH_IT = 2**22

# x Wᵀ + b by oneDNN. PyTorch itself uses oneDNN for 16-bit products alone, but has this operator for its compiler.
_product: Any = None
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _product = torch.ops.mkldnn._linear_pointwise


class Linear(nn.Linear):
    """An ``nn.Linear`` whose large float32 products are computed by oneDNN on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            # this comes first: in an export, the size of the batch is not a number to compare
            torch.compiler.is_exporting()
            or x.numel() * self.out_features < WORTH_IT
            or _product is None
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            # the gradients are those of rows, also where a single one is large enough
            or x.ndim < 2
            # a wrong shape is an error that PyTorch explains better
            or x.shape[-1] != self.in_features
            or self.weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            # forward derivatives and torch.func need rules that _Linear lacks
            or is_transformed()
        ):
            return super().forward(x)
        return _Linear.apply(x.contiguous(), self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b with its three gradients dx = dy W, dW = dyᵀ x and db = Σ dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # what is saved are inputs as they came: second derivatives go on from there
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # oneDNN's product has no derivative: where second ones may follow (create_graph), PyTorch multiplies
        multiply: Any = product
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            multiply = F.linear
        # on an expanded view (a stride of 0) oneDNN takes hundreds of times as long
        dy = dy.contiguous()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = multiply(dy, weight.t())

        # dW is computed with the narrower matrix first, which is a fifth faster
        x = x.flatten(0, -2)
        dy = dy.flatten(0, -2)
        if dy.shape[1] > x.shape[1]:
            dweight = multiply(x.t(), dy.t()).t()
        else:
            dweight = multiply(dy.t(), x.t())

        dbias = None
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0)
        return dx, dweight, dbias


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., N] by weightᵀ [N, M] and add bias [M], by oneDNN."""
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight, bias)
    return _product(x, weight, bias, "none", [], "")


@torch.library.custom_op("unroll::product", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Hide oneDNN's operator from the compiler, which accepts it only in a form of its own."""
    return _product(x, weight, bias, "none", [], "")


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


# Dropout compares 16-bit random numbers with p, which is therefore rounded to a multiple of 1/LEVELS.
LEVELS = 2**16


class Dropout(nn.Dropout):
    """An ``nn.Dropout`` that on a CPU draws 64 random bits for four channels, 16 bits for each."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not self.training or dropped in (0, LEVELS):
            return super().forward(x)

        # one int64 for each four channels, rounded up, read as four int16 from -LEVELS/2 to LEVELS/2 - 1
        n_draws = -(-x.numel() // 4)
        draws = torch.randint(-(2**63), 2**63 - 1, (n_draws,), device=x.device)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = levels >= dropped - LEVELS // 2

        # what is kept is scaled by 1/(1 - p), so that the mean stays
        return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - dropped)))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute ``layer(x)`` without the cost of calling a module."""
    return layer.forward(x)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Compute ``layer(x)`` without the cost of calling a module."""
    return torch.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def drop(layer: nn.Dropout, x: Tensor) -> Tensor:
    """Compute ``layer(x)``; unless the layer is training, return x itself without calling anything."""
    return layer(x) if layer.training else x


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which tensors keep their own types. It costs nothing where there is no autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
