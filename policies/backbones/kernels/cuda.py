"""The operators' bodies on CUDA: PyTorch tensors go into Triton's kernels and come out again."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from unroll.policies.backbones.kernels import operators
from unroll.policies.backbones.kernels import triton_kernels as kernels

GATES = {
    "mingru": kernels.MINGRU,
    "minlstm": kernels.MINLSTM,
    "minlstm_unnormalized": kernels.MINLSTM_UNNORMALIZED,
}
CANDIDATES = {"g": kernels.G, "identity": kernels.IDENTITY, "tanh": kernels.TANH}

# Two programs for each multiprocessor of a large GPU. With fewer, blocks of channels are cut smaller.
PROGRAMS = 264


def why_not() -> str | None:
    """Say why no kernel may run; None means that it may."""
    return None


@operators.gated_scan.register_kernel("cuda")
def gated_forward(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    size = h0.shape[1]
    h = projected.new_empty(batch, time, size)
    last = torch.empty_like(h0, dtype=torch.float32, memory_format=torch.contiguous_format)
    form = {"GATES": GATES[gates], "CANDIDATE": CANDIDATES[candidate]}
    _run(kernels.gated_forward, (projected, h0, reset), (h, last), time, **form)
    return h, last


@operators.gated_scan_backward.register_kernel("cuda")
def gated_backward(
    dh: Tensor,
    dlast: Tensor,
    projected: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h: Tensor,
    gates: str,
    candidate: str,
) -> tuple[Tensor, Tensor]:
    dx = projected.new_empty(projected.shape)
    dh0 = h0.new_empty(h0.shape, dtype=torch.float32)
    form = {"GATES": GATES[gates], "CANDIDATE": CANDIDATES[candidate]}
    _run(kernels.gated_backward, (dh, dlast, projected, h0, reset, h), (dx, dh0), h.shape[1], **form)
    return dx, dh0


@operators.linear_scan.register_kernel("cuda")
def linear_forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    h = b.new_empty(b.shape)
    _run(kernels.linear_forward, (a, b, h0, reset), (h,), h.shape[1], REVERSE=reverse)
    return h


@operators.linear_scan_backward.register_kernel("cuda")
def linear_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    da = a.new_empty(a.shape)
    db = a.new_empty(a.shape)
    dh0 = h0.new_empty(h0.shape)
    _run(kernels.linear_backward, (dh, a, h0, reset, h), (da, db, dh0), h.shape[1], REVERSE=reverse)
    return da, db, dh0


def _run(
    kernel: Any, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...], time: int, **constants: Any
) -> None:
    """Launch a kernel on the inputs' device. The last output is [B, D], or [B, T, D] where it is the only one."""
    shape = outputs[-1].shape
    batch = shape[0]
    size = shape[-1]
    if batch * size == 0:
        return

    # A kernel without resets reads none, so that any pointer will do in their place. Triton has no bool.
    has_reset = any(x is not None and x.dtype == torch.bool for x in inputs)
    first = inputs[0]
    assert first is not None
    pointers = []
    for x in inputs:
        pointer = first
        if x is not None:
            pointer = x.contiguous()
        if pointer.dtype == torch.bool:
            pointer = pointer.view(torch.uint8)
        pointers.append(pointer)

    # One program computes one row of the batch and one block of channels over all steps.
    tile = block(batch, time, size)
    grid = (batch, triton.cdiv(size, tile["BD"]))
    with torch.cuda.device(first.device) if first.is_cuda else torch.device(first.device):
        kernel[grid](*pointers, *outputs, time, size, HAS_RESET=has_reset, **constants, **tile)


def block(batch: int, time: int, size: int) -> dict[str, int]:
    """Choose a tile of BT steps and BD channels, and its number of warps: as wide as leaves enough programs."""
    width = 64
    while width > 16 and batch * triton.cdiv(size, width) < PROGRAMS:
        width //= 2
    warps = 4 if width >= 64 else 2
    steps = min(32, triton.next_power_of_2(max(1, time)))
    return {"BT": steps, "BD": width, "num_warps": warps}
