"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), at least in float32.

For all functions: u, dt [B, T, D]; a [D, N]; b, c [B, T, N]; h0 [B, D, N]; reset [B, T]; y [B, T, D].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.backbones.mamba_kernel import agreeing_kernel, on_the_linear_scan, with_kernel


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[t] = h[t]·C[t] with h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·u[t]·B[t], and the last h; ``h0`` None: zeros.

    On CUDA the kernel of the ``mamba-ssm`` package computes it where that is installed and agrees, for sequences that
    begin from nothing and hold no reset, which are all that it knows.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c = (x.to(dtype) for x in (u, dt, a, b, c))
    with torch.autocast(u.device.type, enabled=False):
        if u.is_cuda:
            kernel = agreeing_kernel() if h0 is None and reset is None and dtype == torch.float32 else None
            if kernel is not None:
                return with_kernel(kernel, u, dt, a, b, c)
            return on_the_linear_scan(u, dt, a, b, c, h0, reset)
        h0 = u.new_zeros(len(u), *a.shape) if h0 is None else h0.to(dtype)
        begins = torch.zeros_like(dt[..., 0], dtype=torch.bool) if reset is None else reset
        return _StepByStep.apply(dt * u, dt, a, b, c, h0, begins)


def selective_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one step: u, dt [B, D], b, c [B, N] and h [B, D, N] → y [B, D] and the next h."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, dt, a, b, c, h = (x.to(dtype) for x in (u, dt, a, b, c, h))
    h = torch.addcmul(torch.exp(dt[..., None] * a) * h, (dt * u)[..., None], b[:, None])
    return (h * c[:, None]).sum(-1), h  # no matrix product, which autocast would round


class _StepByStep(torch.autograd.Function):
    """For the CPU: one step's [B, D, N] stays in the cache; decays are made anew in the backward pass, so that the
    states are all that is kept. About twice as fast as ``on_the_linear_scan`` at (B, T, D, N) = (64, 20, 128, 16)."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        time = v.shape[1]
        states = h0.new_empty(time + 1, *h0.shape)
        states[0] = h0
        y = torch.empty_like(v)
        for t in range(time):
            h = states[t + 1]
            torch.mul(_decay(dt, a, t), states[t], out=h)
            h.masked_fill_(reset[:, t, None, None], 0)  # 0 · NaN would be NaN
            h.addcmul_(v[:, t, :, None], b[:, t, None])
            y[:, t] = (h @ c[:, t, :, None]).squeeze(-1)
        ctx.save_for_backward(v, dt, a, b, c, reset, states)
        return y, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        v, dt, a, b, c, reset, states = ctx.saved_tensors
        dv, ddt, db, dc = (torch.empty_like(x) for x in (v, dt, b, c))
        da, g = torch.zeros_like(dlast), dlast.clone()
        for t in reversed(range(v.shape[1])):
            g.addcmul_(dy[:, t, :, None], c[:, t, None])  # the gradient of h[t]
            dc[:, t] = (dy[:, t, None] @ states[t + 1]).squeeze(1)
            dv[:, t] = (g @ b[:, t, :, None]).squeeze(-1)
            db[:, t] = (v[:, t, None] @ g).squeeze(1)
            g.mul_(_decay(dt, a, t)).masked_fill_(reset[:, t, None, None], 0)  # now of h[t-1]
            exponent = g * states[t]
            da.addcmul_(exponent, dt[:, t, :, None])
            ddt[:, t] = (exponent * a).sum(-1)
        return dv, ddt, da.sum(0), db, dc, g, None


def _decay(dt: Tensor, a: Tensor, t: int) -> Tensor:
    """exp(dt[t]·A) [B, D, N]."""
    return (dt[:, t, :, None] * a).exp_()
