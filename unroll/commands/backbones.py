"""List the backbones and what each costs, as a Markdown table: unroll backbones [my_module:MyBackbone …]"""

from __future__ import annotations

import statistics
import sys
import time

from unroll.commands.process import Reporting
from unroll.configs import Parser
from unroll.tables import markdown_table

D_MODEL = 128
N_LAYERS = 3
REPEATS = 200
COLUMNS = ("name", "paper", "parameters", "state, bytes", "step, µs", "step, multiply-adds", "options")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = Parser(prog="unroll backbones", description=__doc__, allow_abbrev=False)
    about = "a backbone of your own, after the others"
    parser.add_argument("names", nargs="*", default=[], metavar="module:Class", help=about)
    own = parser.parse_args(arguments).names
    with Reporting("unroll backbones") as report:
        import torch

        from unroll.policies.backbones import BACKBONES, find_backbone, import_own

        torch.set_num_threads(1)
        for name in own:
            if ":" in name:
                import_own(name)
            find_backbone(name)
        rows = [row(name) for name in dict.fromkeys((*BACKBONES, *own))]
        print(markdown_table(COLUMNS, rows))
        print()
        print(f"d_model {D_MODEL}, {N_LAYERS} layers, float32. A step is of one row, eager, on one CPU thread with")
        print(f"PyTorch {torch.__version__}, the median of {REPEATS}. Multiply-adds are those of the matrix products.")
    return report.code


def row(name: str) -> list[str]:
    """Make the cells of a backbone."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from unroll.policies.backbones import find_backbone, make_backbone, options_of

    with torch.inference_mode():
        backbone = make_backbone(name, D_MODEL, N_LAYERS).eval()
        x = torch.randn(1, D_MODEL)
        state = backbone.initial_state(1)
        state_size = state_bytes(state)

        # Fused attention is not counted, so attention is made of matrix products here.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
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
        f"{state_size:,}",
        f"{statistics.median(times) * 1e6:.0f}",
        f"{counter.get_total_flops() // 2:,}",
        ", ".join(f"{option}={default}" for option, default in options_of(name).items()),
    ]


def state_bytes(state: object) -> int:
    """Return the bytes that the tensors of a state take."""
    if isinstance(state, tuple):
        return sum(map(state_bytes, state))
    return state.numel() * state.element_size()  # type: ignore[attr-defined]
