"""The operators' bodies on CUDA: PyTorch tensors go into Triton's kernels and come out again."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from unroll.errors import one_line
from unroll.policies.backbones.kernels import operators, selective, triton_selective
from unroll.policies.backbones.kernels import triton_kernels as kernels

PARTS = {"mingru": 2, "minlstm": 3, "minlstm_unnormalized": 3}
GATES = {
    "mingru": kernels.MINGRU,
    "minlstm": kernels.MINLSTM,
    "minlstm_unnormalized": kernels.MINLSTM_UNNORMALIZED,
}
CANDIDATES = {"g": kernels.G, "identity": kernels.IDENTITY, "tanh": kernels.TANH}

# The selective kernels compute decays as powers of 2: e^x = 2^(x · log2 e).
LOG2_E = 1.4426950408889634

# Channels of a program of the selective scan, one a thread.
SELECTIVE_CHANNELS = 32


@functools.cache
def why_not() -> str | None:
    """Say why no kernel may run; None means that it may.

    Before its first launch Triton compiles a part of itself, which takes a C compiler and Python's header files. Small
    images of containers have neither.
    """
    try:
        triton.runtime.driver.active.utils  # noqa: B018 - this compiles it
    except Exception as error:  # a missing compiler, header or driver has each its own
        return f"Triton: {one_line(error, 200)}"
    return None


@operators.gated_scan.register_kernel("cuda")
def gated_forward(
    projected: Tensor, h0: Tensor, reset: Tensor | None, gates: str, candidate: str, turn: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, _ = projected.shape
    h = projected.new_empty(batch, time, h0.shape[1])
    last = torch.empty_like(h0, dtype=torch.float32, memory_format=torch.contiguous_format)
    _forward(*_parts(projected, gates), h0, reset, turn, h, last, _form(gates, candidate, turn))
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
    turn: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(projected, memory_format=torch.contiguous_format)
    dh0 = torch.empty_like(h0, dtype=torch.float32, memory_format=torch.contiguous_format)
    gradients = (*_parts(dx, gates), dh0)
    _backward(dh, dlast, *_parts(projected, gates), h0, reset, turn, h, gradients, _form(gates, candidate, turn))
    return dx, dh0


@operators.linear_scan.register_kernel("cuda")
def linear_forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    last = torch.empty_like(h0, memory_format=torch.contiguous_format)
    _forward(a.contiguous(), b.contiguous(), h0, reset, None, h, last, _linear_form(reverse))
    return h


@operators.linear_scan_backward.register_kernel("cuda")
def linear_backward(
    dh: Tensor, a: Tensor, h0: Tensor, reset: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    a = a.contiguous()
    gradients = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (a, a, h0))
    # the gradients do not depend on b, so that a stands in its place
    _backward(dh, torch.zeros_like(h0), a, a, h0, reset, None, h, gradients, _linear_form(reverse))
    return gradients  # type: ignore[return-value]


@selective.selective_scan.register_kernel("cuda")
def selective_forward(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, size = u.shape
    grid, form = _selective_form(batch, size, len(a), reset)
    y = _empty(u, grid[2], *u.shape)
    last = _empty(u, *h0.shape)
    # one state for each stretch of steps, the last of which may be shorter
    borders = _empty(u, batch, triton.cdiv(time, selective.CHUNK), *a.shape)

    inputs = [x.contiguous() for x in (u, dt, a * LOG2_E, b, c, h0)]
    if batch * size:
        with _on(u):
            outputs = (y, last, borders, time, size)
            triton_selective.selective_forward[grid](*inputs, _starts(inputs[0], reset), *outputs, **form)
    return y.sum(0), last, borders


@selective.selective_scan_backward.register_kernel("cuda")
def selective_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    reset: Tensor | None,
    borders: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, size = u.shape
    grid, form = _selective_form(batch, size, len(a), reset)
    _, blocks, groups = grid
    # what each group of states, each row and each block of channels adds to the sums
    du, ddt = _empty(u, 2, groups, *u.shape)
    da, dh0 = _empty(u, 2, *dlast.shape)
    db, dc = _empty(u, 2, blocks, *b.shape)

    inputs = [x.contiguous() for x in (dy, dlast, u, dt, a * LOG2_E, b, c)]
    if batch * size:
        with _on(u):
            outputs = (borders, du, ddt, da, db, dc, dh0, time, size)
            triton_selective.selective_backward[grid](*inputs, _starts(inputs[0], reset), *outputs, **form)
    return du.sum(0), ddt.sum(0), da.sum(0), db.sum(0), dc.sum(0), dh0


def _selective_form(
    batch: int, size: int, states: int, reset: Tensor | None
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Choose the programs of a selective scan: rows, blocks of channels and groups of states."""
    blocks = triton.cdiv(size, SELECTIVE_CHANNELS)
    groups = 1
    while states % (2 * groups) == 0 and groups < 4 and batch * blocks * groups < PROGRAMS // 4:
        groups *= 2
    form = {
        "N": states,
        "GROUP": states // groups,
        "HAS_RESET": reset is not None,
        "STEPS": selective.CHUNK,
        "BD": SELECTIVE_CHANNELS,
        "num_warps": 1,
    }
    return (batch, blocks, groups), form


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _starts(x: Tensor, reset: Tensor | None) -> Tensor:
    """Return the resets as bytes, since Triton has no bool. A kernel without resets reads none: any pointer will do."""
    return x if reset is None else reset.contiguous().view(torch.uint8)


def _parts(projected: Tensor, gates: str) -> tuple[Tensor, Tensor]:
    """Return the pre-activations, and a view that begins where those of the candidate do."""
    projected = projected.contiguous()
    size = projected.shape[2] // PARTS[gates]
    return projected, projected[:, :, -size:]


def _form(gates: str, candidate: str, turn: Tensor | None) -> dict[str, Any]:
    form = {"GATES": GATES[gates], "CANDIDATE": CANDIDATES[candidate], "SIGNED": turn is not None}
    return form | {"REVERSE": False, "PARTS": PARTS[gates]}


def _linear_form(reverse: bool) -> dict[str, Any]:
    return {"GATES": kernels.LINEAR, "CANDIDATE": kernels.IDENTITY, "SIGNED": False, "REVERSE": reverse, "PARTS": 1}


def _forward(
    x: Tensor,
    v: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    turn: Tensor | None,
    h: Tensor,
    last: Tensor,
    form: dict[str, Any],
) -> None:
    """Launch what computes h and the last state."""
    batch, time, size = h.shape
    if batch * size == 0:
        return
    tile = choose_tile(batch, time, size, CHANNELS_FORWARD)
    start = h0.contiguous()
    form = form | {"HAS_RESET": reset is not None, "UNROLL": UNROLL_FORWARD, "BD": tile.channels}
    starts = _starts(x, reset)
    signs = x if turn is None else turn.contiguous()  # a kernel without signed gates reads none
    with _on(x):
        if tile.chunks > 1:
            start = _carry(x, v, starts, signs, x, start, (batch, time, size), tile, form | {"BACKWARD": False})
        grid = (batch, tile.blocks, tile.chunks)
        kernels.forward[grid](x, v, starts, signs, start, h, last, time, size, tile.steps, **form, num_warps=1)


def _backward(
    dh: Tensor,
    dlast: Tensor,
    x: Tensor,
    v: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    turn: Tensor | None,
    h: Tensor,
    gradients: tuple[Tensor, ...],
    form: dict[str, Any],
) -> None:
    """Launch what computes the gradients of x, v and h0."""
    batch, time, size = h.shape
    if batch * size == 0:
        return
    tile = choose_tile(batch, time, size, CHANNELS_BACKWARD)
    dh = dh.contiguous()
    follows = dlast.contiguous()
    form = form | {"HAS_RESET": reset is not None, "UNROLL": UNROLL_BACKWARD, "BD": tile.channels}
    starts = _starts(x, reset)
    signs = x if turn is None else turn.contiguous()
    with _on(x):
        if tile.chunks > 1:
            follows = _carry(x, v, starts, signs, dh, follows, (batch, time, size), tile, form | {"BACKWARD": True})
        inputs = (dh, follows, x, v, starts, signs, h0.contiguous(), h.contiguous())
        grid = (batch, tile.blocks, tile.chunks)
        kernels.backward[grid](*inputs, *gradients, time, size, tile.steps, **form, num_warps=1)


def _carry(
    x: Tensor,
    v: Tensor,
    starts: Tensor,
    signs: Tensor,
    dh: Tensor,
    first: Tensor,
    shape: tuple[int, int, int],
    tile: Tile,
    form: dict[str, Any],
) -> Tensor:
    """Launch what computes what is carried into each chunk [B, chunks, D], from ``first`` [B, D]."""
    batch, time, size = shape
    products, sums, carried = torch.empty(3, batch, tile.chunks, size, dtype=torch.float32, device=x.device)
    inputs = (x, v, starts, signs, dh, products, sums)
    grid = (batch, tile.blocks, tile.chunks)
    kernels.chunk_effect[grid](*inputs, time, size, tile.steps, **form, num_warps=1)
    direction = {"BACKWARD": form["BACKWARD"], "BD": 32}
    kernels.carry[(batch, triton.cdiv(size, 32))](
        products, sums, first, carried, size, tile.chunks, **direction, num_warps=1
    )
    return carried


def _on(x: Tensor) -> Any:
    """A kernel is launched on the current device, which need not be that of its tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else torch.device(x.device)


class Tile(NamedTuple):
    """How a scan is cut: ``channels`` a program in ``blocks`` programs, ``steps`` a chunk in ``chunks`` chunks."""

    channels: int
    blocks: int
    steps: int
    chunks: int


# Steps that are computed while as many are loaded, and the most channels of a program. More of them need more registers
# than there are.
UNROLL_FORWARD, CHANNELS_FORWARD = 8, 64
UNROLL_BACKWARD, CHANNELS_BACKWARD = 4, 128

# As many programs of one warp as can wait for memory at a time on a large GPU: 32 a multiprocessor. With fewer, rows
# are cut into at least this many chunks of at least this many steps: then they are read twice.
PROGRAMS = 4224
FEWEST_CHUNKS = 4
SHORTEST_CHUNK = 32


def choose_tile(batch: int, time: int, size: int, most_channels: int) -> Tile:
    """Choose the channels of a program, and whether rows are cut into chunks."""
    # two or more channels a thread, as long as a quarter of the programs that there could be is left
    channels = most_channels
    while channels > 64 and batch * triton.cdiv(size, channels) < PROGRAMS // 4:
        channels //= 2
    if size <= 32:
        channels = 32
    blocks = triton.cdiv(size, channels)
    chunks = min(PROGRAMS // max(1, batch * blocks), time // SHORTEST_CHUNK)
    if chunks < FEWEST_CHUNKS:
        return Tile(channels, blocks, time, 1)
    steps = triton.cdiv(time, chunks * UNROLL_FORWARD) * UNROLL_FORWARD
    return Tile(channels, blocks, steps, triton.cdiv(time, steps))
