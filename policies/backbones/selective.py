"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), at least in float32.

Shapes: u, dt [B, T, D]; a [D, N]; b, c [B, T, N]; h0 [B, D, N]; reset [B, T]; y [B, T, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import choose_body
from unroll.policies.backbones.kernels import selective as operators
from unroll.policies.backbones.scan import check_shapes, linear_scan


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[t] = h[t]·C[t] with h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·u[t]·B[t], and the last h; ``h0`` None: zeros.

    On the CPU a compiled kernel computes it in one pass and keeps every 16th state for the gradients. On CUDA, for
    float64, and wherever there is no kernel, it is PyTorch on the linear recurrence.
    """
    check_shapes(u.shape, (len(u), *a.shape), h0, reset)
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c = (x.to(dtype) for x in (u, dt, a, b, c))
    with torch.autocast(u.device.type, enabled=False):
        if u.is_cuda or choose_body("auto", u) == "reference":
            return on_the_linear_scan(u, dt, a, b, c, h0, reset)
        h0 = u.new_zeros(len(u), *a.shape) if h0 is None else h0.to(dtype)
        y, last, _ = operators.selective_scan(u, dt, a.mT, b, c, h0.mT, reset)
        return y, last.mT


def on_the_linear_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in three operations over whole sequences, which hold several tensors [B, T, D, N]."""
    h = linear_scan(torch.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None], h0, reset)
    return (h @ c[..., None]).squeeze(-1), h[:, -1].clone()


def selective_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one step: u, dt [B, D], b, c [B, N] and h [B, D, N] → y [B, D] and the next h."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c, h = (x.to(dtype) for x in (u, dt, a, b, c, h))
    h = torch.addcmul(torch.exp(dt[..., None] * a) * h, (dt * u)[..., None], b[:, None])
    return (h * c[:, None]).sum(-1), h  # no matrix product, which autocast would round
