"""Measure how near the scans come to the bandwidth of the memory chips, which is all that they can need.

The least traffic of a forward pass is its inputs and h, once each. That of a backward pass is the gradient of h, the
inputs, h, and the gradients of the inputs. The copy that stands for 1 runs in the same process. accelerated-scan
(Kyrylov 2024) takes part if it is installed: in its own layout [B, C, T], without a state before and without resets.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.layers import SCANS
from benchmarks.timing import medians, repeated
from unroll.policies.backbones.scan import linear_scan

CALLS = 10  # in a row, so that the launch and the wait for the GPU are not counted with each
Scan = Callable[..., Tensor]


def bandwidths(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each scan in float32 and bfloat16, forward alone and with its backward pass."""
    torch.set_num_threads(options.threads[-1])
    for dtype in (torch.float32, torch.bfloat16):
        runs, traffic = _runs(options, dtype)
        seconds = {name: value / CALLS for name, value in medians(runs, options.repeats).items()}
        speed = {name: traffic[name] / seconds[name] / 1e9 for name in runs}
        for name in runs:
            yield {
                "B, T, D": ", ".join(map(str, options.scan_shape)),
                "inputs": str(dtype).removeprefix("torch."),
                "scan": name,
                "ms": 1e3 * seconds[name],
                "GB/s": speed[name],
                "of copy": speed[name] / speed["copy"],
            }


def _runs(options: argparse.Namespace, dtype: torch.dtype) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Return the runs that are timed, by name, and the bytes that each must move."""
    torch.manual_seed(0)
    batch, time, d_model = options.scan_shape
    keep = torch.rand(batch, time, d_model, device=options.device).to(dtype)
    wide = torch.randn(batch, time, 3 * d_model, device=options.device).to(dtype)
    update = wide[..., :d_model].contiguous()
    reset = torch.rand(batch, time, device=options.device) < 0.01
    target = torch.empty_like(keep)

    # linear_scan takes its coefficients, the gated scans take projections and compute the gates themselves.
    scans: dict[str, tuple[Scan, tuple[Tensor, ...]]] = {
        "linear_scan": (lambda a, b: linear_scan(a, b, None, reset, options.backend), (keep, update))
    }
    for name, (parts, gated) in SCANS.items():
        projected = wide[..., : parts * d_model].contiguous()
        scans[name] = (lambda p, gated=gated: gated(p, None, reset, backend=options.backend)[0], (projected,))
    scans |= _accelerated(keep, update)

    # What each must read and write at least, once each.
    runs: dict[str, Callable[[], None]] = {"copy": repeated(lambda: target.copy_(keep), CALLS)}
    traffic = {"copy": keep.nbytes + target.nbytes}
    for name, (scan, given) in scans.items():
        inputs = tuple(x.detach().requires_grad_() for x in given)
        h = scan(*inputs).detach()
        grad = torch.randn_like(h)
        read = sum(x.nbytes for x in inputs)
        forward_traffic = read + h.nbytes
        backward_traffic = grad.nbytes + read + h.nbytes + read

        both = f"{name}, with backward"
        runs[name] = repeated(_forward(scan, inputs), CALLS)
        runs[both] = repeated(_forward_backward(scan, inputs, grad), CALLS)
        traffic[name] = forward_traffic
        traffic[both] = forward_traffic + backward_traffic
    return runs, traffic


def _forward(scan: Scan, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return scan(*inputs)

    return run


def _forward_backward(scan: Scan, inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(scan(*inputs), inputs, grad)


def _accelerated(keep: Tensor, update: Tensor) -> dict[str, tuple[Scan, tuple[Tensor, ...]]]:
    """Return the CUDA and the Triton kernel of accelerated-scan, if they run here, with inputs in their layout."""
    if not keep.is_cuda:
        return {}
    inputs = (keep.mT.contiguous(), update.mT.contiguous())
    scans: dict[str, tuple[Scan, tuple[Tensor, ...]]] = {}
    for name in ("accelerated_scan.warp", "accelerated_scan.scalar"):
        # warp is compiled when it is imported, and takes only some lengths. Whatever goes wrong, the other rows do
        # not depend on it.
        try:
            scan = importlib.import_module(name).scan
            scan(*inputs)
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            scans[name] = (scan, inputs)
    return scans
