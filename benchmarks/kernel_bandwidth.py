"""How near the scans come to the memory's bandwidth, which is all that they can need.

The least traffic of a forward pass is its inputs and h, once each; that of a backward pass the gradient of h, the
inputs, h, and the gradients of the inputs. The copy that stands for 1 runs in the same process. accelerated-scan
(Kyrylov 2024) takes part where it is installed: in its own layout [B, C, T], without a state before and without resets.
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
from benchmarks.timing import medians
from unroll.policies.backbones.scan import linear_scan

CALLS = 10  # in a row: a launch, and the wait for the GPU, would else be counted with each


def bandwidths(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row of each scan in float32 and bfloat16, forward alone and with its backward pass."""
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
    """What is timed, by name, and the bytes that each must move."""
    torch.manual_seed(0)
    batch, time, d_model = options.scan_shape
    keep = torch.rand(batch, time, d_model, device=options.device).to(dtype)
    wide = torch.randn(batch, time, 3 * d_model, device=options.device).to(dtype)
    update, reset = wide[..., :d_model].contiguous(), torch.rand(batch, time, device=options.device) < 0.01
    target = torch.empty_like(keep)
    runs: dict[str, Callable[[], None]] = {"copy": lambda: _again(lambda: target.copy_(keep))}
    traffic = {"copy": keep.nbytes + target.nbytes}
    scans: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "linear_scan": (lambda a, b: linear_scan(a, b, None, reset, options.backend), (keep, update))
    }
    for name, (parts, scan) in SCANS.items():
        projected = wide[..., : parts * d_model].contiguous()
        scans[name] = (lambda p, scan=scan: scan(p, None, reset, backend=options.backend)[0], (projected,))
    for name, scan, inputs in _accelerated(keep, update):
        scans[name] = (scan, inputs)
    for name, (scan, inputs) in scans.items():
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        h = scan(*inputs).detach()
        grad, read = torch.randn_like(h), sum(x.nbytes for x in inputs)
        runs[name], runs[f"{name}, with backward"] = _forward(scan, inputs), _both(scan, inputs, grad)
        traffic[name] = read + h.nbytes
        traffic[f"{name}, with backward"] = traffic[name] + grad.nbytes + read + h.nbytes + read
    return runs, traffic


def _forward(scan: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    return lambda: _again(torch.no_grad()(lambda: scan(*inputs)))


def _both(scan: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], None]:
    return lambda: _again(lambda: torch.autograd.grad(scan(*inputs), inputs, grad))


def _again(run: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        run()


def _accelerated(keep: Tensor, update: Tensor) -> Iterator[tuple[str, Callable[..., Tensor], tuple[Tensor, Tensor]]]:
    """The CUDA and the Triton kernel of accelerated-scan, those that run here, and the inputs in their layout."""
    inputs = keep.mT.contiguous(), update.mT.contiguous()
    for name in ("accelerated_scan.warp", "accelerated_scan.scalar") if keep.is_cuda else ():
        try:  # warp is compiled when it is imported, and takes some lengths alone
            scan = importlib.import_module(name).scan
            scan(*inputs)
        except Exception as error:  # whatever it is, the other rows do not depend on it
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        yield name, scan, inputs
