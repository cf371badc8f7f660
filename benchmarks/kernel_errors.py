"""How far the scans are from float64: h, and the gradients of the projections and of the state before.

The reference is the plain loop in float64 over the very inputs, so that only what the kernel does is counted, not the
rounding of bfloat16 inputs. The log-space form stands beside it without resets, which it cannot express.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.layers import SCANS, log_space_mingru, log_space_minlstm

BATCH, CHANNELS = 2, 64
GATES: dict[str, Callable[..., Tensor]] = {
    "N(0, 1)": torch.randn,
    "N(0, 16)": lambda *shape: 4 * torch.randn(*shape),
    "-15 … 15": lambda *shape: 30 * torch.rand(*shape) - 15,
}
LOG_SPACE = {"minGRU": log_space_mingru, "minLSTM": log_space_minlstm}
Scan = Callable[[Tensor, Tensor], Tensor]


def errors(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row of each kernel, distribution of the gates' pre-activations, and form."""
    for name, (parts, scan) in SCANS.items():
        for gates, draw in GATES.items():
            torch.manual_seed(0)
            shape = (BATCH, options.errors_length, CHANNELS)
            gate_values = [draw(*shape) for _ in range(parts - 1)]
            projected, h0 = torch.cat([*gate_values, torch.randn(shape)], -1), torch.rand(BATCH, CHANNELS) + 0.1
            grad, reset = torch.randn(shape), torch.rand(shape[:2]) < 0.01
            fused = partial(_fused, scan, options.backend)
            for form, run, dtype, resets in (
                (options.backend, fused, torch.float32, reset),
                (options.backend, fused, torch.bfloat16, reset),
                (options.backend, fused, torch.float32, None),
                ("log space", lambda p, h, _, log_space=LOG_SPACE[name]: log_space(p, h), torch.float32, None),
            ):
                inputs = (projected.to(dtype), h0, grad.to(dtype))
                exact = _values(partial(_fused, scan, "reference", reset=resets), *(x.double() for x in inputs))
                moved = (x.to(options.device) for x in inputs)
                where = None if resets is None else resets.to(options.device)
                found = _values(lambda p, h, run=run, where=where: run(p, h, where), *moved)
                row = {"kernel": name, "gates": gates, "form": form, "inputs": str(dtype).removeprefix("torch.")}
                names = ("h", "d projected", "d h0")
                row["resets"] = "no" if resets is None else "yes"
                yield row | dict(zip(names, map(_error, found, exact), strict=True))


def _fused(scan: Callable[..., Any], backend: str, projected: Tensor, h0: Tensor, reset: Tensor | None) -> Tensor:
    return scan(projected, h0, reset, backend=backend)[0]


def _values(scan: Scan, projected: Tensor, h0: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """h, d projected and d h0 of the loss Σ h·grad."""
    projected, h0 = projected.requires_grad_(), h0.requires_grad_()
    h = scan(projected, h0)
    return (h.detach(), *torch.autograd.grad(h, [projected, h0], grad.to(h.dtype)))


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found.double().cpu() - exact).abs().max() / exact.abs().max()).item()
