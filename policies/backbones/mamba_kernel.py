"""The selective scan on the shared linear recurrence, or on CUDA in the kernel of the ``mamba-ssm`` package.

Shapes as in ``selective.py``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unroll.policies.backbones.scan import linear_scan

Kernel = Callable[..., Any]


def on_the_linear_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in three operations over whole sequences, which hold several tensors [B, T, D, N]."""
    h = linear_scan(torch.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None], h0, reset)
    return (h @ c[..., None]).squeeze(-1), h[:, -1].clone()


@functools.cache
def agreeing_kernel() -> Kernel | None:
    """mamba-ssm's kernel, if it can be imported and computes what ``on_the_linear_scan`` computes."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError):
        return None
    if agrees(selective_scan_fn, "cuda"):
        return selective_scan_fn
    warnings.warn("mamba-ssm's kernel gives other numbers than PyTorch here, so it is not used", stacklevel=2)
    return None


def agrees(kernel: Kernel, device: str) -> bool:
    """Whether ``kernel`` is right on one small random problem, values and gradients."""
    random = torch.Generator().manual_seed(0)
    u, b, c = (torch.randn(2, 9, n, generator=random).to(device).requires_grad_() for n in (8, 4, 4))
    dt = torch.rand(2, 9, 8, generator=random).to(device).requires_grad_()
    a = -torch.rand(8, 4, generator=random).to(device) - 0.1
    inputs = (u, dt, a.requires_grad_(), b, c)
    results = []
    for y, last in (with_kernel(kernel, *inputs), on_the_linear_scan(*inputs)):
        results.append((y, last, *torch.autograd.grad(y.cos().sum(), inputs)))
    return all(torch.allclose(p, q, rtol=1e-3, atol=1e-4) for p, q in zip(*results, strict=True))


def with_kernel(kernel: Kernel, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The scan from nothing in mamba-ssm's kernel, whose sequences are [B, D, T]. Its last state has no gradient, so
    asking for one is an error and not a zero."""
    u, dt, b, c = (x.transpose(1, 2).contiguous() for x in (u, dt, b, c))
    y, last = kernel(u, dt, a, b, c, return_last_state=True)
    return y.transpose(1, 2), _NoGradient.apply(last, y)


class _NoGradient(torch.autograd.Function):
    """The first argument; a gradient for it is an error."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, y: Tensor) -> Tensor:
        return last.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "mamba-ssm's kernel has no gradient for the state after a sequence: pass initial_state(batch) as the state "
            "of the first part, and PyTorch computes it"
        )
