"""What there is, measured: python -m unroll.policies.backbones [my_module:MyBackbone …] prints a Markdown table."""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unroll.errors import BackboneError
from unroll.policies.backbones import BACKBONES, State, find_backbone, import_own, make_backbone, options_of

D_MODEL, N_LAYERS, REPEATS = 128, 3, 200
COLUMNS = ("name", "paper", "parameters", "state, bytes", "step, µs", "step, multiply-adds", "options")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m unroll.policies.backbones", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="module:Class", help="a backbone of your own, after the others")
    names = parser.parse_args(arguments).names
    torch.set_num_threads(1)
    try:
        for name in names:
            if ":" in name:
                import_own(name)
            find_backbone(name)
        rows = [row(name) for name in dict.fromkeys((*BACKBONES, *names))]
    except BackboneError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print(f"| {' | '.join(cells)} |")
    print(
        f"\nd_model {D_MODEL}, {N_LAYERS} layers, float32. A step is of one row, eager, on one CPU thread with PyTorch"
    )
    print(f"{torch.__version__}, the median of {REPEATS}; its multiply-adds are those of the matrix products.")
    return 0


@torch.inference_mode()
def row(name: str) -> list[str]:
    """The backbone's cells of the table."""
    backbone = make_backbone(name, D_MODEL, N_LAYERS).eval()
    x, state = torch.randn(1, D_MODEL), backbone.initial_state(1)
    state_size = f"{state_bytes(state):,}"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        backbone.step(x, state)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        _, state = backbone.step(x, state)
        times.append(time.perf_counter() - start)
    return [
        f"`{name}`",
        find_backbone(name).paper,
        f"{sum(parameter.numel() for parameter in backbone.parameters()):,}",
        state_size,
        f"{statistics.median(times) * 1e6:.0f}",
        f"{counter.get_total_flops() // 2:,}",
        ", ".join(f"{option}={default}" for option, default in options_of(name).items()),
    ]


def state_bytes(state: State) -> int:
    """What the tensors of a state take."""
    if isinstance(state, tuple):
        return sum(map(state_bytes, state))
    return state.numel() * state.element_size()
