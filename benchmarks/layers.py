"""Layers x [B, T, D] → h [B, T, D] that the kernels are compared by, each as its users would write it.

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

# Name → the number of projections of x that it takes, and its scan (projected, h0, reset, backend=…) → h, last.
SCANS = {"minGRU": (2, partial(gated_scan, gates="mingru")), "minLSTM": (3, partial(gated_scan, gates="minlstm"))}


class Gated(nn.Module):
    """A layer of this project: one Linear, then gates, resets and the scan in one call."""

    def __init__(self, name: str, d_model: int, reset: Tensor | None = None, backend: str = "auto"):
        super().__init__()
        parts, self.scan = SCANS[name]
        self.project = Linear(d_model, parts * d_model)
        self.reset = reset
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(self.project(x), None, self.reset, backend=self.backend)[0]


class LogSpace(nn.Module):
    """A minGRU as its paper computes it, behind the same Linear. It has no resets."""

    def __init__(self, d_model: int):
        super().__init__()
        self.project = Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        # g(0) = 0.5 is the state before, which must be above 0.
        h0 = x.new_full((len(x), x.shape[-1]), 0.5)
        return log_space_mingru(self.project(x), h0)


class CellLoop(nn.Module):
    """An nn.GRUCell or nn.LSTMCell with one Python call a step: the un-fused reference of the minRNNs' paper."""

    def __init__(self, cell: type[nn.GRUCell] | type[nn.LSTMCell], d_model: int):
        super().__init__()
        self.cell = cell(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs = []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            outputs.append(first(state))
        return torch.stack(outputs, 1)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return what a layer computes, without the state that some give with it."""
    if isinstance(output, tuple):
        return output[0]
    return output


def forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call that computes the gradients of x and of the layer's matrices, for the loss Σ y·grad."""
    # A bias has one axis.
    matrices = [weight for weight in layer.parameters() if weight.ndim > 1]
    for weight in layer.parameters():
        weight.requires_grad_(weight.ndim > 1)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(first(layer(x)), [x, *matrices], grad)

    return run


def log_space_mingru(projected: Tensor, h0: Tensor) -> Tensor:
    """Compute minGRU over projected [B, T, 2D] from h0 [B, D] > 0.

    log(1 - z) = -softplus(k) and log z = -softplus(-k) (Feng et al. 2024, arXiv 2410.01201, appendix B).
    """
    k, candidate = projected.chunk(2, -1)
    log_keep = -F.softplus(k)
    log_update = -F.softplus(-k)
    return log_space_scan(log_keep, log_update + log_g(candidate), h0.log())


def log_space_minlstm(projected: Tensor, h0: Tensor) -> Tensor:
    """Compute minLSTM over projected [B, T, 3D] from h0 [B, D] > 0.

    Its gates are normalised: f' = σ(log f - log i).
    """
    f, i, candidate = projected.chunk(3, -1)
    odds = F.softplus(-f) - F.softplus(-i)
    log_keep = -F.softplus(odds)
    log_update = -F.softplus(-odds)
    return log_space_scan(log_keep, log_update + log_g(candidate), h0.log())


def log_space_scan(log_a: Tensor, log_b: Tensor, log_h0: Tensor) -> Tensor:
    """Compute h [B, T, D] of h[t] = a[t]·h[t-1] + b[t], with a, b, h > 0.

    With a*[t] = Σ log a up to t, log h[t] = a*[t] + log(h0 + Σ exp(log b - a*)) (Heinsen 2023, arXiv 2311.06281;
    algorithm 3 of Feng et al.).
    """
    a_star = log_a.cumsum(1)
    terms = torch.cat([log_h0[:, None], log_b - a_star], 1)
    log_h = a_star + terms.logcumsumexp(1)[:, 1:]
    return log_h.exp()


def log_g(x: Tensor) -> Tensor:
    """Compute log g(x), with g(x) = x + 0.5 for x ≥ 0 and σ(x) below."""
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))
