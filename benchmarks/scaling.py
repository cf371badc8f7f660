"""Time and memory of one layer of every backbone as sequences grow, at a constant number of tokens.

    python -m benchmarks.scaling [--output FOLDER]          run from the root of the repository

B·T is constant, so that a cost that is linear in T is a flat line. Attention sees the whole sequence: its window is T.
A length is skipped if it would take longer than --limit, judging by the length before and a time that grows as T does:
at a constant number of tokens no cost here grows faster. Times are medians of one backbone's lengths in turn.
``benchmarks/memory.py`` says how RAM is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.grid import backbone_names, device, duration, positive, positives
from benchmarks.memory import Point, peak_memory
from benchmarks.timing import markdown, medians, report
from unroll.commands.process import Reporting
from unroll.policies.backbones import BACKBONES

LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
SHORT = 256  # the length that the ratios refer to
Row = dict[str, Any]


def at(name: str, length: int, options: argparse.Namespace) -> Point:
    """Return the point of a backbone at a length."""
    return Point(name, options.tokens // length, length, options.d_model, options.device)


def times(name: str, options: argparse.Namespace) -> dict[int, float]:
    """Measure the seconds of forward and backward by length, without those that would take longer than the limit."""
    runs = {}
    rate = 0.0  # seconds per step of the sequence
    for length in options.lengths:
        # At the pace of the last length that was run, this one would take too long.
        if rate * length > options.limit:
            continue
        run = at(name, length, options).forward_backward()
        run()  # the first call compiles and allocates, so it is not counted
        began = time.perf_counter()
        run()
        if options.device == "cuda":
            torch.cuda.synchronize()
        rate = (time.perf_counter() - began) / length
        runs[str(length)] = run
    return {int(length): value for length, value in medians(runs, options.repeats, warm=0).items()}


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """Measure one backbone at every length."""
    seconds = times(name, options)
    points = []
    for length in options.lengths:
        point = at(name, length, options)
        row = {"backbone": name, "B": point.batch, "T": length, "us_per_token": None, "peak_bytes": None}
        if length in seconds:
            row["us_per_token"] = 1e6 * seconds[length] / (point.batch * length)
            row["peak_bytes"] = peak_memory(point, options.threads)
        points.append(row)
    return points


def table(points: list[Row], key: str, scale: float) -> list[Row]:
    """A row of each backbone, a column of each length, and how the longest compares with a short one."""
    rows = []
    for name in dict.fromkeys(point["backbone"] for point in points):
        values = {point["T"]: _value(point, key, scale) for point in points if point["backbone"] == name}
        # The last column tells how the cost of a token grows with the length.
        cells: Row = {"backbone": name}
        cells |= {f"T = {length}": value for length, value in values.items()}
        short = SHORT if SHORT in values else min(values)
        long = max(values)
        cells[f"{long} / {short}"] = _ratio(values[long], values[short])
        rows.append(cells)
    return rows


def _ratio(long: float | str, short: float | str) -> float | str:
    """Return how two values compare, if both were measured."""
    if isinstance(long, float) and isinstance(short, float) and long > 0 and short > 0:
        return long / short
    return "–"


def _value(point: Row, key: str, scale: float) -> float | str:
    """Return a value of a point, or say why there is none."""
    if point["us_per_token"] is None:
        return "skipped"
    if point[key] is None:
        return "out of memory"
    return float(point[key] * scale)


def plot(points: list[Row], file: Path) -> None:
    """Draw time and RAM against T, log-log."""
    from matplotlib.figure import Figure  # without pyplot: no window system is looked for

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, scale, label in (
        (panels[0], "us_per_token", 1, "µs per token, forward + backward"),
        (panels[1], "peak_bytes", 2**-20, "peak memory, MiB"),
    ):
        for name in dict.fromkeys(point["backbone"] for point in points):
            curve = [point for point in points if point["backbone"] == name and point[key] is not None]
            axes.loglog([p["T"] for p in curve], [p[key] * scale for p in curve], marker=".", label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="T, at a constant B·T", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(file, dpi=80)


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    points = []
    for name in options.backbones:
        print(f"{name} …", file=sys.stderr, flush=True)
        points += measure(name, options)
    title = (
        f"µs per token of one layer, forward and backward: B·T = {options.tokens}, d_model {options.d_model}, "
        f"{options.device}, {options.threads} thread(s)"
    )
    output = options.output and options.output / "scaling.json"
    report(title, table(points, "us_per_token", 1), output, points=points)
    print(f"Peak memory above parameters and input, MiB\n\n{markdown(table(points, 'peak_bytes', 2**-20))}")
    if options.output:
        plot(points, options.output / "scaling.png")
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", type=backbone_names, default=list(BACKBONES), help="a,b,…; default: all")
    parser.add_argument("--lengths", type=positives, default=LENGTHS, help="a,b,…, from short to long")
    parser.add_argument("--tokens", type=positive, default=16384, help="B·T")
    parser.add_argument("--d_model", type=positive, default=128)
    parser.add_argument("--limit", type=duration, default=20.0, help="seconds of one forward and backward")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--output", type=Path, help="folder for scaling.json and scaling.png")
    options = parser.parse_args(arguments)
    if max(options.lengths) > options.tokens:
        parser.error(f"--tokens {options.tokens} is less than one sequence of {max(options.lengths)} steps")
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
