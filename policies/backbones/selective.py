"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), at least in float32.

    (1)  h[t] = exp(Δ[t] A)·h[t-1] + Δ[t] B[t] u[t]       equation 2a of the paper, discretised
    (2)  y[t] = C[t]·h[t]                                 equation 2b

exp(Δ A) is the paper's zero-order hold (equation 4); B is discretised as Δ B, as in its released code.

Shapes: u, dt (the paper's Δ) and y [B, T, D]; a [D, N]; b and c [B, T, N]; h0 [B, D, N]; reset [B, T].
"""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.policies.backbones.kernels import choose_body
from unroll.policies.backbones.kernels import selective as operators
from unroll.policies.backbones.scan import check_shapes, linear_scan

# Rows times channels from which CUDA's kernel is the faster one. It computes one step after the other: an H100 takes
# 1.8 µs a step, forward and backward, where PyTorch takes 1 ns for each channel of each row.
NARROWEST = 1800


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute y of equations 1 and 2 and the last h, from h[-1] = ``h0`` (None: zeros).

    A compiled kernel computes it in one pass and keeps every 16th state for the gradients. For float64, and wherever
    there is no kernel, it is PyTorch on the linear recurrence; on CUDA also where there are too few rows and channels
    to compute side by side.
    """
    check_shapes(u.shape, (len(u), *a.shape), h0, reset)
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c = (x.to(dtype) for x in (u, dt, a, b, c))
    if h0 is not None:
        h0 = h0.to(dtype)

    with torch.autocast(u.device.type, enabled=False):
        too_narrow = u.is_cuda and len(u) * len(a) < NARROWEST
        if too_narrow or choose_body("auto", u) == "reference":
            return on_the_linear_scan(u, dt, a, b, c, h0, reset)
        if h0 is None:
            h0 = u.new_zeros(len(u), *a.shape)
        # in the kernel, states have their channels last
        y, last, _ = operators.selective_scan(u, dt, a.mT, b, c, h0.mT, reset)
        return y, last.mT


def on_the_linear_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the selective scan with ``linear_scan``, which holds several tensors [B, T, D, N]."""
    # equation 1: decays and updates of all steps, then the recurrence
    decay = torch.exp(dt[..., None] * a)
    update = (dt * u)[..., None] * b[:, :, None]
    h = linear_scan(decay, update, h0, reset)
    # equation 2
    y = (h @ c[..., None]).squeeze(-1)
    return y, h[:, -1].clone()


def selective_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one step: u, dt [B, D], b, c [B, N] and h [B, D, N] → y [B, D] and the next h."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c, h = (x.to(dtype) for x in (u, dt, a, b, c, h))
    h = torch.addcmul(torch.exp(dt[..., None] * a) * h, (dt * u)[..., None], b[:, None])
    # a sum and not a matrix product, which autocast would round
    return (h * c[:, None]).sum(-1), h
