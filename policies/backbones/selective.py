"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), at least in float32.

Shapes: u, dt [B, T, D]; a [D, N]; b, c [B, T, N]; h0 [B, D, N]; reset [B, T]; y [B, T, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import choose_body
from unroll.policies.backbones.kernels import selective as operators
from unroll.policies.backbones.mamba_kernel import agreeing_kernel, on_the_linear_scan, with_kernel
from unroll.policies.backbones.scan import check_shapes


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[t] = h[t]·C[t] with h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·u[t]·B[t], and the last h; ``h0`` None: zeros.

    On the CPU a compiled kernel computes it in one pass and keeps every 16th state for the gradients. On CUDA it is the
    kernel of the ``mamba-ssm`` package where that is installed and agrees, for sequences that begin from nothing and
    hold no reset, which are all that it knows. For float64, and wherever there is no kernel, it is PyTorch, on the
    linear recurrence.
    """
    check_shapes(u.shape, (len(u), *a.shape), h0, reset)
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c = (x.to(dtype) for x in (u, dt, a, b, c))
    with torch.autocast(u.device.type, enabled=False):
        if u.is_cuda and h0 is None and reset is None and dtype == torch.float32:
            kernel = agreeing_kernel()
            if kernel is not None:
                return with_kernel(kernel, u, dt, a, b, c)
        if u.is_cuda or choose_body("auto", u) == "reference":
            return on_the_linear_scan(u, dt, a, b, c, h0, reset)
        h0 = u.new_zeros(len(u), *a.shape) if h0 is None else h0.to(dtype)
        y, last, _ = operators.selective_scan(u, dt, a.mT, b, c, h0.mT, reset)
        return y, last.mT


def selective_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one step: u, dt [B, D], b, c [B, N] and h [B, D, N] → y [B, D] and the next h."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c, h = (x.to(dtype) for x in (u, dt, a, b, c, h))
    h = torch.addcmul(torch.exp(dt[..., None] * a) * h, (dt * u)[..., None], b[:, None])
    return (h * c[:, None]).sum(-1), h  # no matrix product, which autocast would round
