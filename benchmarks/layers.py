"""The layers that the kernels are compared by: x [B, T, D] → h [B, T, D], each as its users would write it.

Biases take part but get no gradient, so that every layer computes the gradients of x and of its matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.layers import Linear
from unroll.policies.backbones.scan import gated_scan

# how many projections of x each one takes, and its scan (projected, h0, reset, backend=…) → h, last
SCANS = {"minGRU": (2, partial(gated_scan, gates="mingru")), "minLSTM": (3, partial(gated_scan, gates="minlstm"))}


class Gated(nn.Module):
    """This project's layer: one Linear, then gates, resets and the scan in one call."""

    def __init__(self, name: str, d_model: int, reset: Tensor | None = None, backend: str = "auto"):
        super().__init__()
        parts, self.scan = SCANS[name]
        self.project = Linear(d_model, parts * d_model)
        self.reset, self.backend = reset, backend

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(self.project(x), None, self.reset, backend=self.backend)[0]


class LogSpace(nn.Module):
    """minGRU as its paper computes it, behind the same Linear; there is no way to say where an episode begins."""

    def __init__(self, d_model: int):
        super().__init__()
        self.project = Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        return log_space_mingru(self.project(x), x.new_full((len(x), x.shape[-1]), 0.5))


class CellLoop(nn.Module):
    """nn.GRUCell or nn.LSTMCell, one Python call a step: the un-fused reference of the minRNNs' paper."""

    def __init__(self, cell: type[nn.GRUCell] | type[nn.LSTMCell], d_model: int):
        super().__init__()
        self.cell = cell(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        state, states = None, []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, 1)


def forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs ``layer`` and computes the gradients of x and of its matrices, of the loss Σ y·grad."""
    matrices = [weight for weight in layer.parameters() if weight.ndim > 1]
    for weight in layer.parameters():
        weight.requires_grad_(weight.ndim > 1)

    def run() -> tuple[Tensor, ...]:
        y = layer(x)
        return torch.autograd.grad(y[0] if isinstance(y, tuple) else y, [x, *matrices], grad)

    return run


def log_space_mingru(projected: Tensor, h0: Tensor) -> Tensor:
    """minGRU over projected [B, T, 2D] from h0 [B, D] > 0: log(1 - z) = -softplus(k), log z = -softplus(-k)
    (Feng et al. 2024, arXiv 2410.01201, appendix B)."""
    k, candidate = projected.chunk(2, -1)
    return log_space_scan(-F.softplus(k), -F.softplus(-k) + log_g(candidate), h0.log())


def log_space_minlstm(projected: Tensor, h0: Tensor) -> Tensor:
    """minLSTM over projected [B, T, 3D] from h0 [B, D] > 0, its gates normalised: f' = σ(log f - log i)."""
    f, i, candidate = projected.chunk(3, -1)
    odds = F.softplus(-f) - F.softplus(-i)
    return log_space_scan(-F.softplus(odds), -F.softplus(-odds) + log_g(candidate), h0.log())


def log_space_scan(log_a: Tensor, log_b: Tensor, log_h0: Tensor) -> Tensor:
    """h [B, T, D] of h[t] = a[t]·h[t-1] + b[t] with a, b, h > 0: with a*[t] = Σ log a up to t,
    log h[t] = a*[t] + log(h0 + Σ exp(log b - a*)) (Heinsen 2023, arXiv 2311.06281; algorithm 3 of Feng et al.)."""
    a_star = log_a.cumsum(1)
    terms = torch.cat([log_h0[:, None], log_b - a_star], 1)
    return (a_star + terms.logcumsumexp(1)[:, 1:]).exp()


def log_g(x: Tensor) -> Tensor:
    """log g(x), where g(x) = x + 0.5 for x ≥ 0 and σ(x) below."""
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))
