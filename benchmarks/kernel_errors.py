"""Measure how far the scans are from float64, in h and in the gradients of the projections and of the state before.

The reference is the plain loop in float64 over the very same inputs. So only the error of the kernel is counted, not
the rounding of bfloat16 inputs. The log-space form stands beside it without resets, which it cannot express.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.layers import SCANS, log_space_mingru, log_space_minlstm

BATCH = 2
CHANNELS = 64
COLUMNS = ("h", "d projected", "d h0")

# Name → a function that draws the pre-activations of the gates.
GATES: dict[str, Callable[..., Tensor]] = {
    "N(0, 1)": torch.randn,
    "N(0, 16)": lambda *shape: 4 * torch.randn(*shape),
    "-15 … 15": lambda *shape: 30 * torch.rand(*shape) - 15,
}
LOG_SPACE = {"minGRU": log_space_mingru, "minLSTM": log_space_minlstm}
Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # projected, h0, reset → h


class Inputs(NamedTuple):
    """The inputs of a scan, and the gradient of the loss by h."""

    projected: Tensor
    h0: Tensor
    grad: Tensor


def errors(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each kernel, distribution of the gates' pre-activations, and form."""
    for name, (parts, scan) in SCANS.items():
        exact = partial(_scan, scan, "reference")
        fused = partial(_scan, scan, options.backend)
        forms: tuple[tuple[str, Run, torch.dtype, bool], ...] = (
            (options.backend, fused, torch.float32, True),
            (options.backend, fused, torch.bfloat16, True),
            (options.backend, fused, torch.float32, False),
            ("log space", partial(_log_space, LOG_SPACE[name]), torch.float32, False),
        )
        for gates, draw_gate in GATES.items():
            inputs, reset = _draw(draw_gate, parts, options.errors_length)
            for form, run, dtype, with_resets in forms:
                # The state before stays in float32.
                rounded = inputs._replace(projected=inputs.projected.to(dtype), grad=inputs.grad.to(dtype))
                resets = reset if with_resets else None
                wanted = _values(exact, _moved(rounded, torch.float64), resets)
                found = _values(run, _moved(rounded, options.device), _moved_mask(resets, options.device))
                yield {
                    "kernel": name,
                    "gates": gates,
                    "form": form,
                    "inputs": str(dtype).removeprefix("torch."),
                    "resets": "yes" if with_resets else "no",
                    **dict(zip(COLUMNS, map(_error, found, wanted), strict=True)),
                }


def _draw(draw_gate: Callable[..., Tensor], parts: int, length: int) -> tuple[Inputs, Tensor]:
    """Draw inputs and resets. The last part of the projections is the candidate."""
    # The log-space form needs h0 > 0.
    torch.manual_seed(0)
    shape = (BATCH, length, CHANNELS)
    gates = [draw_gate(*shape) for _ in range(parts - 1)]
    projected = torch.cat([*gates, torch.randn(shape)], -1)
    h0 = torch.rand(BATCH, CHANNELS) + 0.1
    grad = torch.randn(shape)
    reset = torch.rand(shape[:2]) < 0.01
    return Inputs(projected, h0, grad), reset


def _moved(inputs: Inputs, to: torch.dtype | str) -> Inputs:
    return Inputs(*(part.to(to) for part in inputs))


def _moved_mask(reset: Tensor | None, device: str) -> Tensor | None:
    if reset is None:
        return None
    return reset.to(device)


def _scan(scan: Callable[..., Any], backend: str, projected: Tensor, h0: Tensor, reset: Tensor | None) -> Tensor:
    h, _ = scan(projected, h0, reset, backend=backend)
    return h


def _log_space(scan: Callable[..., Tensor], projected: Tensor, h0: Tensor, reset: Tensor | None) -> Tensor:
    assert reset is None
    return scan(projected, h0)


def _values(run: Run, inputs: Inputs, reset: Tensor | None) -> tuple[Tensor, ...]:
    """Return h, d projected and d h0 of the loss Σ h·grad."""
    projected = inputs.projected.requires_grad_()
    h0 = inputs.h0.requires_grad_()
    h = run(projected, h0, reset)
    return (h.detach(), *torch.autograd.grad(h, [projected, h0], inputs.grad.to(h.dtype)))


def _error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error, as a share of the largest value."""
    largest = (found.double().cpu() - exact).abs().max()
    return (largest / exact.abs().max()).item()
