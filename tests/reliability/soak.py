"""Does a long run grow? Train both agents at once for half an hour, and count memory, descriptors, threads and files.

    python -m tests.reliability soak [--minutes 30] [--warmup 3]

They are counted once a second from /proc (Linux), after a warm-up in which everything that is allocated once is
allocated. Both agents evaluate and save more often than by default: what would grow with an evaluation or a checkpoint
grows here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from unroll.agents.common.machine import machine
from unroll.tables import markdown_table

ROOT = Path(__file__).parents[2]
AGENTS = {
    "decision": "--checkpoint_every 500 --evaluation.every 2000 --evaluation.episodes 3",
    "ppo": "--config ppo/hopper --checkpoint_every 10000 --evaluation.every 20000 --evaluation.episodes 3",
}
MEMORY_LIMIT = 5.0  # per cent of drift that is still called flat
FILES_LIMIT = 4 + 3 * 3  # config, metrics, events, lock; the last two checkpoints and the best, of three files each
FIGURES = ("memory_mb", "descriptors", "threads", "files")


@dataclasses.dataclass
class Run:
    """A process that is watched, and what was counted of it."""

    name: str
    folder: Path
    process: subprocess.Popen
    samples: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {name: [] for name in FIGURES})

    def sample(self) -> None:
        """Count once."""
        proc = Path("/proc", str(self.process.pid))
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (proc / "status").read_text(), re.MULTILINE))
        # Resident memory, not the proportional share (PSS), which falls when another process loads the same libraries.
        self.samples["memory_mb"].append(int(status["VmRSS"]) / 1024)
        self.samples["descriptors"].append(len(list((proc / "fd").iterdir())))
        self.samples["threads"].append(int(status["Threads"]))
        self.samples["files"].append(sum(len(files) for _, _, files in os.walk(self.folder)))


def main(arguments: list[str]) -> int:
    """Soak. The exit code is 1 where something grew, or a run ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="that are counted")
    parser.add_argument("--warmup", type=float, default=3, help="minutes before, that are not")
    options = parser.parse_args(arguments)
    print(f"## Soak\n\n`python -m tests.reliability soak {' '.join(arguments)}`\n{machine()}\n", flush=True)
    lines: list[list[str]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        runs = [start(name, folder / name) for name in AGENTS]
        for run in runs:
            stack.callback(run.process.kill)
        try:
            watch(runs, 60 * options.warmup, 60 * options.minutes)
            for run in runs:
                lines += rows(run)
                print(f"{run.name}: {len(run.samples['files'])} samples, ended {stop(run):.1f} s after SIGTERM")
        except RuntimeError as error:
            logs = [run.folder.with_suffix(".log").read_text()[-2000:] for run in runs]
            print(*logs, error, sep="\n", file=sys.stderr)
            return 1
    print(f"\n{markdown_table(['run', 'what', 'min', 'median', 'max', 'drift', 'flat'], lines)}", flush=True)
    return int(any(line[-1] == "no" for line in lines))


def start(name: str, folder: Path) -> Run:
    """Start a training of more steps than it will come to, with its output beside its run folder."""
    flags = f"{AGENTS[name]} --steps 1000000000 --threads 1 --device cpu".split()
    with folder.with_suffix(".log").open("w") as log:
        command = [sys.executable, "train.py", *flags, "--run_dir", str(folder)]
        return Run(name, folder, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))


def watch(runs: Sequence[Run], warmup: float, seconds: float, interval: float = 1.0) -> None:
    """Count every ``interval`` seconds for ``seconds``, after ``warmup`` seconds.

    Raises:
        RuntimeError: a process has ended by itself.
    """
    begin = time.monotonic() + warmup
    while time.monotonic() < begin + seconds:
        for run in runs:
            if run.process.poll() is not None:
                raise RuntimeError(f"{run.name} ended with exit code {run.process.returncode}")
            if time.monotonic() >= begin:
                with contextlib.suppress(KeyError, OSError):  # it ends right now, which the next look tells
                    run.sample()
        time.sleep(interval)


def stop(run: Run) -> float:
    """Send SIGTERM and return the seconds until the process has ended.

    Raises:
        RuntimeError: it did not end as it should.
    """
    begin = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code = run.process.wait(60)
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"{run.name} ended with exit code {code} after SIGTERM")
    return time.monotonic() - begin


def rows(run: Run) -> list[list[str]]:
    """Make the table's lines for one run."""
    lines = []
    for name, values in run.samples.items():
        shown = [f"{figure:.0f}" for figure in (min(values), statistics.median(values), max(values))]
        flat = "no" if grows(name, values) else "yes"
        lines.append([run.name, name, *shown, f"{drift(values):+.1f} %", flat])
    return lines


def grows(name: str, samples: Sequence[float]) -> bool:
    """Tell whether memory is not flat, a descriptor or a thread stays on, or there are more files than are kept."""
    if name == "files":  # the best checkpoint may come late, and is kept then
        return _ends(samples)[1] > FILES_LIMIT
    if name == "memory_mb":
        return abs(drift(samples)) > MEMORY_LIMIT
    return drift(samples) > 0


def drift(samples: Sequence[float]) -> float:
    """Give the per cent by which the median of the last tenth lies above that of the first.

    A count that rises for a moment, with an evaluation or a checkpoint, and comes back is no drift.
    """
    first, last = _ends(samples)
    return 100 * (last - first) / max(first, 1)


def _ends(samples: Sequence[float]) -> tuple[float, float]:
    """Give the medians of the first and of the last tenth."""
    tenth = max(1, len(samples) // 10)
    return statistics.median(samples[:tenth]), statistics.median(samples[-tenth:])
