"""Helpers of the speed benchmarks: medians of interleaved runs, a table, a JSON file."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from unroll.agents.common.machine import machine
from unroll.tables import markdown_table

Key = TypeVar("Key")


def medians(
    runs: Mapping[Key, Callable[[], Any]], repeats: int, warm: int = 2, settle: bool = False
) -> dict[Key, float]:
    """Measure the seconds of each run, as the median of ``repeats``.

    The runs take turns, so that whatever disturbs the machine for a while disturbs all of them.

    Args:
        warm: rounds before those that count.
        settle: make a call that does not count right before each that does, so that what another run left in the
            caches and the allocator is not this one's cost.
    """
    # Rounds with a negative number warm up.
    times: dict[Key, list[float]] = {name: [] for name in runs}
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


def repeated(run: Callable[[], Any], calls: int) -> Callable[[], None]:
    """Return a function that calls ``run`` so many times."""

    def run_all() -> None:
        for _ in range(calls):
            run()

    return run_all


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table of rows with the same keys. Floats have three significant digits."""
    return markdown_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def report(title: str, rows: Sequence[Mapping[str, Any]], output: str | Path | None, **more: Any) -> None:
    """Print the table below what was run on which machine, and write both to ``output`` as JSON."""
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    print(f"{title}\n\n`{command}`\n{machine()}\n\n{markdown(rows)}\n", flush=True)
    if output is not None:
        content = {
            "title": title,
            "command": command,
            "machine": machine(),
            **more,
            "rows": [dict(row) for row in rows],
        }
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(content, indent=1) + "\n")


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _synchronize() -> None:
    """Wait until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
