"""Does a long run grow? train.py learns for half an hour; its memory, descriptors, threads and files are counted.

Counted once a second from /proc (Linux), after a warm-up in which everything that is allocated once is allocated. Both
agents evaluate and save more often than by default: what would grow with an evaluation or a checkpoint grows here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.timing import markdown
from unroll.agents.common.machine import machine

ROOT = Path(__file__).parents[2]
AGENTS = {
    "decision": ["--checkpoint_every", "500", "--evaluation.every", "2000", "--evaluation.episodes", "3"],
    "ppo": [
        *["--config", "configs/ppo/hopper.yaml", "--checkpoint_every", "10000"],
        *["--evaluation.every", "20000", "--evaluation.episodes", "3"],
    ],
}
MEMORY_LIMIT = 5.0  # per cent of drift that is still called flat
FILES_LIMIT = 4 + 3 * 3  # config, metrics, events, lock; the last two checkpoints and the best, of three files each
GROWTH: dict[str, Callable[[int], int]] = {  # how each figure is shown
    "memory_mb": lambda size: round(size / 2**20),
    "descriptors": int,
    "threads": int,
    "files": int,
}


@dataclasses.dataclass
class Run:
    """A process that is watched, and what was counted: {memory_mb, descriptors, threads, files} → samples."""

    name: str
    folder: Path
    process: subprocess.Popen
    samples: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {name: [] for name in GROWTH})

    def sample(self) -> None:
        """Count once.

        Raises:
            RuntimeError: the process has ended.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.returncode}")
        proc = Path("/proc", str(self.process.pid))
        status = (proc / "status").read_text()
        counted = {
            # not its proportional share (PSS), which falls when another process loads the same libraries
            "memory_mb": 1024 * _number("VmRSS", status),
            "descriptors": len(list((proc / "fd").iterdir())),
            "threads": _number("Threads", status),
            "files": sum(len(files) for _, _, files in os.walk(self.folder)),
        }
        for name, value in counted.items():
            self.samples[name].append(value)


def _number(key: str, text: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
    assert match
    return int(match[1])


def watch(runs: Sequence[Run], warmup: float, seconds: float, interval: float = 1.0) -> None:
    """Sample every run each ``interval`` seconds for ``seconds``, after ``warmup`` seconds."""
    begin = time.monotonic() + warmup
    while time.monotonic() < begin:
        time.sleep(interval)
        for run in runs:
            if run.process.poll() is not None:
                raise RuntimeError(f"{run.name} ended with exit code {run.process.returncode}")
    while time.monotonic() < begin + seconds:
        for run in runs:
            run.sample()
        time.sleep(interval)


def drift(samples: Sequence[float]) -> float:
    """Per cent by which the median of the last tenth lies above that of the first. A count that rises for a moment,
    with an evaluation or a checkpoint, and comes back is no drift."""
    tenth = max(1, len(samples) // 10)
    first, last = statistics.median(samples[:tenth]), statistics.median(samples[-tenth:])
    return 100 * (last - first) / max(first, 1)


def grows(name: str, samples: Sequence[float]) -> bool:
    """Whether memory is not flat, descriptors or threads became more at all, or there are more files than are kept."""
    if name == "files":  # the best checkpoint may come late, and is kept then
        return statistics.median(samples[-max(1, len(samples) // 10) :]) > FILES_LIMIT
    return abs(drift(samples)) > MEMORY_LIMIT if name == "memory_mb" else drift(samples) > 0


def rows(run: Run) -> list[dict[str, object]]:
    """The table's lines for one run."""
    return [
        {
            "run": run.name,
            "what": name,
            "min": show(min(values)),
            "median": show(round(statistics.median(values))),
            "max": show(max(values)),
            "drift": f"{drift(values):+.1f} %",
            "flat": "no" if grows(name, values) else "yes",
        }
        for name, show in GROWTH.items()
        for values in [run.samples[name]]
    ]


def start(name: str, folder: Path, threads: int) -> Run:
    """train.py with more steps than it will come to, its output beside its run folder."""
    flags = ["--steps", "1000000000", "--threads", str(threads), "--device", "cpu", "--run_dir", str(folder)]
    with folder.with_suffix(".log").open("w") as log:
        command = [sys.executable, "train.py", *AGENTS[name], *flags]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    return Run(name, folder, process)


def stop(run: Run) -> float:
    """Seconds from SIGTERM to the end.

    Raises:
        RuntimeError: it did not end as it should.
    """
    begin = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code = run.process.wait(60)
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"{run.name} ended with exit code {code} after SIGTERM")
    return time.monotonic() - begin


def main(arguments: list[str]) -> int:
    """1 where something grew, or a run ended by itself."""
    parser = argparse.ArgumentParser("python -m benchmarks.reliability soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="that are counted, for each agent")
    parser.add_argument("--warmup", type=float, default=3, help="minutes before, that are not")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="2: both agents at once")
    parser.add_argument("--threads", type=int, default=1, help="of each agent")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    options = parser.parse_args(arguments)
    print(f"## Soak\n\n`python -m benchmarks.reliability soak {' '.join(arguments)}`\n{machine()}\n", flush=True)
    lines: list[dict[str, object]] = []
    together = [options.agents] if options.jobs > 1 else [[name] for name in options.agents]
    with contextlib.ExitStack() as stack:
        temporary = Path(tempfile.mkdtemp(prefix="soak-"))
        stack.callback(shutil.rmtree, temporary)
        for names in together:
            runs = [start(name, temporary / name, options.threads) for name in names]
            for run in runs:
                stack.callback(run.process.kill)
            try:
                watch(runs, 60 * options.warmup, 60 * options.minutes)
                seconds = {run.name: stop(run) for run in runs}
            except RuntimeError as error:
                log = "".join(run.folder.with_suffix(".log").read_text()[-2000:] for run in runs)
                print(f"{log}\n{error}", file=sys.stderr)
                return 1
            lines += [line for run in runs for line in rows(run)]
            for run in runs:
                print(f"{run.name}: {len(run.samples['files'])} samples, ended {seconds[run.name]:.1f} s after SIGTERM")
    print(f"\n{markdown(lines)}", flush=True)
    return int(any(line["flat"] == "no" for line in lines))
