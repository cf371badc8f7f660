"""Compare what several processes under torchrun learn, and how fast, with one process.

    python -m benchmarks.ranks [--updates 200] [--processes 1 2 4]

Both agents are trained by ``unroll train`` for the same updates of the same batches, with one thread in each process,
over gloo.

The first table compares every update's loss with that of one process. It has the greatest difference, absolute and
relative to the loss (that of PPO passes through 0), and the number of updates that agree within 1e-5. PPO plays a
T-maze. Sums over processes have other last bits. In float32 one of them changes an action in the end, and the episodes
differ from there on; in float64 (benchmarks/train_in_float64.py) that takes longer than the run.

The second table has the speed of the decision agent on the embedded data, and of PPO in Hopper-v5 with the default
network and minibatches and with large ones. More processes than cores are no faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import markdown
from unroll.agents.common.logs import read_metrics
from unroll.agents.common.machine import machine

TRAIN = Path(__file__).parents[1] / "train.py"
FLOAT64 = Path(__file__).with_name("train_in_float64.py")
COMMON = ["--threads", "1", "--device", "cpu", "--evaluation.episodes", "1", "--evaluation.every", "0"]
DECISION = ["--log_every", "1", "--evaluation.targets", "[100]"]
PPO = ["--agent", "ppo", "--n_envs", "8", "--evaluation.ablation", "false"]
MAZE = [*PPO, "--env", "TMaze10-v0", "--n_steps", "16", "--n_epochs", "4"]
# Agent → steps of an update, flags, script.
EQUAL = {
    "decision": (1, [*DECISION, "--backbone.d_model", "32", "--batch_size", "16", "--dropout", "0"], TRAIN),
    "PPO, TMaze10-v0": (128, MAZE, TRAIN),
    "PPO, TMaze10-v0, float64": (128, MAZE, FLOAT64),
}
HOPPER = [*PPO, "--env", "Hopper-v5", "--n_steps", "256"]
LARGE = ["--backbone.d_model", "256", "--backbone.n_layers", "2", "--sequence_length", "64", "--batch_size", "2048"]
PPO_SPEEDS = {"playing, steps/s": "time/rollout_fps", "learning, steps/s": "time/train_fps"}
# Agent → steps of an update, flags, and the logged speeds: tokens or environment steps per second.
FAST = {
    "decision": (1, [*DECISION, "--batch_size", "128"], {"learning, tokens/s": "perf/train_tokens_per_s"}),
    "PPO, Hopper-v5": (2048, HOPPER, PPO_SPEEDS),
    "PPO, Hopper-v5, large": (2048, [*HOPPER, *LARGE], PPO_SPEEDS),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--updates", type=int, default=200, help="of the first table; the second has a tenth for PPO")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tables", nargs="+", choices=["equal", "speed"], default=["equal", "speed"])
    options = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for table in options.tables:
            rows = {"equal": equal, "speed": speed}[table](Path(folder), options.updates, options.processes)
            print(f"\n{markdown(rows)}", flush=True)
    return 0


def equal(folder: Path, updates: int, processes: list[int]) -> list[dict[str, Any]]:
    """Compare the losses with those of the first number of processes."""
    rows: list[dict[str, Any]] = []
    for name, (step, flags, script) in EQUAL.items():
        # The same updates of the same batches, on so many processes.
        losses = {}
        for n in processes:
            lines = train(n, folder / f"equal{len(rows)}-{n}", flags, step * updates, script)
            losses[n] = [line["train/loss"] for line in lines if "train/loss" in line]

        first = losses[processes[0]]
        row: dict[str, Any] = {"agent": name, "updates": len(first)}
        for n in processes[1:]:
            gaps = [abs(a - b) for a, b in zip(first, losses[n], strict=True)]
            relative = [gap / abs(a) for gap, a in zip(gaps, first, strict=True)]
            row[f"{n} processes: difference"] = f"{max(gaps):.1e}"
            row[f"{n} processes: relative"] = f"{max(relative):.1e}"
            row[f"{n} processes: within 1e-5"] = first_above(gaps, 1e-5)
        rows.append(row)
    return rows


def first_above(values: list[float], bound: float) -> int:
    """Return the index of the first value above a bound, or else the number of values."""
    for i, value in enumerate(values):
        if value > bound:
            return i
    return len(values)


def speed(folder: Path, updates: int, processes: list[int]) -> list[dict[str, Any]]:
    """Compare the medians of the logged speeds with those of the first number of processes."""
    rows: list[dict[str, Any]] = []
    first = processes[0]
    for name, (step, flags, tags) in FAST.items():
        # An update of PPO has thousands of steps, so a tenth of the updates does.
        if step > 1:
            steps = step * (updates // 10)
        else:
            steps = updates
        logs = {n: train(n, folder / f"fast{len(rows)}-{n}", flags, steps) for n in processes}
        for what, tag in tags.items():
            speeds = {}
            for n, log in logs.items():
                speeds[n] = statistics.median(line[tag] for line in log if tag in line)

            row: dict[str, Any] = {"agent": f"{name}: {what}"}
            for n in processes:
                plural = "es" if n > 1 else ""
                row[f"{n} process{plural}"] = f"{speeds[n]:,.0f}"
            for n in processes[1:]:
                row[f"{n} to {first}"] = f"{speeds[n] / speeds[first]:.2f}"
            rows.append(row)
    return rows


def train(n: int, run: Path, flags: list[str], steps: int, script: Path = TRAIN) -> list[dict[str, float]]:
    """Make a run on ``n`` processes; return its log."""
    launch = []
    if n > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    own = ["--steps", str(steps), "--checkpoint_every", str(steps), "--run_dir", str(run)]
    command = [sys.executable, *launch, str(script), *COMMON, *flags, *own]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return read_metrics(run)


if __name__ == "__main__":
    sys.exit(main())
