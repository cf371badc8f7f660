"""Compare the fused kernels of minGRU and minLSTM with their floor and their peers, and measure how exact they are.

    python -m benchmarks.kernels [--tables layers errors bandwidth steps] [--output FOLDER]

All four tables are made unless some are named, on the GPU if there is one. Times are medians of turns taken in one
process, and only their ratios count. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.grid import device, positive, positives
from benchmarks.kernel_bandwidth import bandwidths
from benchmarks.kernel_errors import errors
from benchmarks.layers import CellLoop, Gated, LogSpace, first, forward_backward
from benchmarks.timing import medians, repeated, report
from unroll.commands.process import Reporting
from unroll.policies.backbones.layers import Linear

SHAPES = ((64, 60, 128), (64, 20, 128), (16, 1000, 128), (8, 4096, 256), (256, 128, 64))  # B, T, D
BURST = 0.02  # seconds; a faster call is repeated for so long, so that the data of the others leave the cache
Row = dict[str, Any]


def per_call(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Measure the seconds of one call of each run, the runs in turn."""
    calls = {name: max(1, round(BURST / seconds)) for name, seconds in medians(runs, 1, warm=1).items()}
    bursts = {name: repeated(run, calls[name]) for name, run in runs.items()}
    times = medians(bursts, repeats, warm=0)
    return {name: seconds / calls[name] for name, seconds in times.items()}


def layers(options: argparse.Namespace) -> Iterator[Row]:
    """Yield rows of the forward and backward of one layer.

    Ours have resets. The log-space form has none, and PyTorch's layers would pay for them.
    """
    # The modules take turns at each size, with the same input and gradient.
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch, time, d_model in options.shapes:
            torch.manual_seed(0)
            x = torch.randn(batch, time, d_model, device=options.device, requires_grad=True)
            reset = torch.rand(batch, time, device=options.device) < 0.01
            # A Linear has twice the channels: it is the floor of minGRU, whose projection it is.
            grads = {"Linear": torch.randn(batch, time, 2 * d_model, device=options.device)}
            grad = torch.randn_like(x)
            modules = {
                "Linear": Linear(d_model, 2 * d_model),
                "minGRU": Gated("minGRU", d_model, reset, options.backend),
                "minLSTM": Gated("minLSTM", d_model, reset, options.backend),
                "nn.GRU": nn.GRU(d_model, d_model, batch_first=True),
                "nn.LSTM": nn.LSTM(d_model, d_model, batch_first=True),
                "log space": LogSpace(d_model),
            }
            runs = {}
            for name, module in modules.items():
                runs[name] = forward_backward(module.to(options.device), x, grads.get(name, grad))
            seconds = per_call(runs, options.repeats)
            mingru = seconds["minGRU"]
            yield {
                "threads": torch.get_num_threads(),  # as it is after the runs
                "B, T, D": f"{batch}, {time}, {d_model}",
                "Linear, ms": 1e3 * seconds["Linear"],
                "minGRU, ms": 1e3 * mingru,
                "minGRU / Linear": mingru / seconds["Linear"],
                "minLSTM / minGRU": seconds["minLSTM"] / mingru,
                "nn.GRU / minGRU": seconds["nn.GRU"] / mingru,
                "nn.LSTM / minGRU": seconds["nn.LSTM"] / mingru,
                "log space / minGRU": seconds["log space"] / mingru,
            }


def steps(options: argparse.Namespace) -> Iterator[Row]:
    """Yield rows of a whole update of one layer and a head, with AdamW, beside fused RNNs and loops over cells."""
    torch.set_num_threads(options.threads[-1])
    batch = options.batch
    d_model = 128
    for time in options.lengths:
        torch.manual_seed(0)
        x, target = torch.randn(2, batch, time, d_model, device=options.device).unbind()
        modules = {
            "minGRU": Gated("minGRU", d_model, backend=options.backend),
            "minLSTM": Gated("minLSTM", d_model, backend=options.backend),
            "nn.GRU": nn.GRU(d_model, d_model, batch_first=True),
            "nn.LSTM": nn.LSTM(d_model, d_model, batch_first=True),
            "GRUCell loop": CellLoop(nn.GRUCell, d_model),
            "LSTMCell loop": CellLoop(nn.LSTMCell, d_model),
        }
        runs = {name: _update(module.to(options.device), x, target) for name, module in modules.items()}
        seconds = per_call(runs, options.repeats)
        row: Row = {"B, T, D": f"{batch}, {time}, {d_model}", "minGRU, ms": 1e3 * seconds["minGRU"]}
        for name in list(modules)[1:]:
            row[f"{name} / minGRU"] = seconds[name] / seconds["minGRU"]
        yield row


def _update(layer: nn.Module, x: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """Return a function that makes one update."""
    head = nn.Linear(x.shape[-1], x.shape[-1], device=x.device)
    optimizer = torch.optim.AdamW([*layer.parameters(), *head.parameters()])

    def run() -> None:
        loss = F.mse_loss(head(first(layer(x))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


TABLES: dict[str, tuple[str, Callable[[argparse.Namespace], Iterator[Row]]]] = {
    "layers": ("One layer, forward and backward (gradients of x and of the matrices)", layers),
    "errors": ("Largest error, as a share of the largest value of the float64 reference", errors),
    "bandwidth": ("The scans alone against a copy; traffic is the least possible, each tensor once", bandwidths),
    "steps": ("One update: layer, head, mean squared error, AdamW", steps),
}


def run(options: argparse.Namespace) -> int:
    where = "CPU"
    if options.device == "cuda":
        where = torch.cuda.get_device_name()
    for name in options.tables:
        title, table = TABLES[name]
        output = options.output and options.output / f"{name}.json"
        rows = list(table(options))
        report(f"{title}; {where}, backend {options.backend}", rows, output)
    return 0


def shape(text: str) -> tuple[int, int, int]:
    """Parse B,T,D."""
    sizes = positives(text)
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,T,D, as in 64,60,128")
    return sizes[0], sizes[1], sizes[2]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, default=default, help=f"cpu or cuda; default: {default}")
    parser.add_argument("--backend", choices=["auto", "reference", "cpu", "cuda"], default="auto", help="of our scans")
    parser.add_argument(
        "--threads", type=positives, default=[1, os.cpu_count() or 1], help="a,b,…; tables but the first: the last"
    )
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="B,T,D", help="of layers")
    parser.add_argument("--errors_length", type=positive, default=4096, metavar="T")
    parser.add_argument("--scan_shape", type=shape, metavar="B,T,D", help="of bandwidth")
    parser.add_argument("--lengths", type=positives, default=[512, 4096], metavar="T,…", help="of steps")
    parser.add_argument("--batch", type=positive, help="of steps; default: 64 on cuda, else 8")
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--output", type=Path, help="folder for a JSON file of each table")
    options = parser.parse_args(arguments)
    scan_shape = (64, 60, 128)
    batch = 8
    if options.device == "cuda":
        options.threads = options.threads[-1:]
        scan_shape = (256, 1024, 512)
        batch = 64
    options.scan_shape = options.scan_shape or scan_shape
    options.batch = options.batch or batch
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
