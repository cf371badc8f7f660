"""What several processes under torchrun learn, and how fast, beside one.

    python -m benchmarks.ranks [--updates 200] [--processes 1 2 4]

Both agents are trained by train.py for the same updates of the same batches, one thread in each process, over gloo. The
first table compares every update's loss with that of one process: the greatest difference, as it is and in relation to
the loss (that of PPO passes through 0), and how many updates agree within 1e-5. PPO plays a T-maze. Sums over processes
have other last bits: in float32 one of them makes another action in the end, and other episodes from there on; in
float64 (benchmarks/train_in_float64.py) that takes longer than the run. The second table gives the speed: of the
decision agent on the embedded data, and of PPO in Hopper-v5 with the default network and minibatches, and with large
ones. More processes than cores are no faster.
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
EQUAL = {
    "decision": (1, [*DECISION, "--backbone.d_model", "32", "--batch_size", "16", "--dropout", "0"], TRAIN),
    "PPO, TMaze10-v0": (128, MAZE, TRAIN),
    "PPO, TMaze10-v0, float64": (128, MAZE, FLOAT64),
}
HOPPER = [*PPO, "--env", "Hopper-v5", "--n_steps", "256"]
LARGE = ["--backbone.d_model", "256", "--backbone.n_layers", "2", "--sequence_length", "64", "--batch_size", "2048"]
PPO_SPEEDS = {"playing, steps/s": "time/rollout_fps", "learning, steps/s": "time/train_fps"}
FAST = {  # steps of an update, flags, and what is logged: tokens or environment steps per second
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
    """The greatest differences of the losses from those of the first number of processes."""
    rows: list[dict[str, Any]] = []
    for name, (step, flags, script) in EQUAL.items():
        losses = {}
        for n in processes:
            lines = train(n, folder / f"equal{len(rows)}-{n}", flags, step * updates, script)
            losses[n] = [line["train/loss"] for line in lines if "train/loss" in line]
        first = losses[processes[0]]
        row: dict[str, Any] = {"agent": name, "updates": len(first)}
        for n in processes[1:]:
            gaps = [abs(a - b) for a, b in zip(first, losses[n], strict=True)]
            row[f"{n} processes: difference"] = f"{max(gaps):.1e}"
            row[f"{n} processes: relative"] = f"{max(gap / abs(a) for gap, a in zip(gaps, first, strict=True)):.1e}"
            row[f"{n} processes: within 1e-5"] = next((i for i, gap in enumerate(gaps) if gap > 1e-5), len(gaps))
        rows.append(row)
    return rows


def speed(folder: Path, updates: int, processes: list[int]) -> list[dict[str, Any]]:
    """What the runs log of their speed, medians, and the ratio to the first number of processes."""
    rows: list[dict[str, Any]] = []
    for name, (step, flags, tags) in FAST.items():
        logs = {}
        for n in processes:
            steps = step * (updates if step == 1 else updates // 10)
            logs[n] = train(n, folder / f"fast{len(rows)}-{n}", flags, steps)
        for what, tag in tags.items():
            speeds = {n: statistics.median(line[tag] for line in log if tag in line) for n, log in logs.items()}
            row = {"agent": f"{name}: {what}"} | {
                f"{n} process{'es' * (n > 1)}": f"{v:,.0f}" for n, v in speeds.items()
            }
            first = processes[0]
            rows.append(row | {f"{n} to {first}": f"{speeds[n] / speeds[first]:.2f}" for n in processes[1:]})
    return rows


def train(n: int, run: Path, flags: list[str], steps: int, script: Path = TRAIN) -> list[dict[str, float]]:
    """The log of a run on ``n`` processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []
    own = ["--steps", str(steps), "--checkpoint_every", str(steps), "--run_dir", str(run)]
    command = [sys.executable, *launch, str(script), *COMMON, *flags, *own]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return read_metrics(run)


if __name__ == "__main__":
    sys.exit(main())
