"""What the speed benchmarks share: medians of interleaved runs, a table, a JSON file."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unroll.agents.common.machine import machine


def medians(
    runs: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 2, settle: bool = False
) -> dict[str, float]:
    """Seconds of each run, the median of ``repeats``. The runs take turns, so that what disturbs the machine for a
    while disturbs all of them; ``warm`` rounds before are not counted. ``settle``: nor is a call right before each, so
    that what another run left in the caches and the allocator is not this one's cost."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(-warm, repeats):
        for name, run in runs.items():
            if settle:
                run()
            _synchronize()
            begin = time.perf_counter()
            run()
            _synchronize()
            if round_ >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows with the same keys; floats with three significant digits."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(title: str, rows: Sequence[Mapping[str, Any]], output: str | Path | None, **more: Any) -> None:
    """Print the table under what was run on which machine, and write both to ``output`` as JSON."""
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    print(f"{title}\n\n`{command}`\n{machine()}\n\n{markdown(rows)}\n", flush=True)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        about = {"title": title, "command": command, "machine": machine()}
        Path(output).write_text(json.dumps(about | more | {"rows": [dict(row) for row in rows]}, indent=1) + "\n")


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
