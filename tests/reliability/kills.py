"""Kill training runs at random moments and compare what they end with to undisturbed runs.

    python -m tests.reliability kills [--kills 50] [--seed 0] [--output folder]

Both agents are trained in processes of their own, which get kill -9 (85 %) or SIGTERM (15 %) at a random moment, from
their start on, and are started again with ``--resume true``. Compared are the last checkpoint's weights, optimizer,
statistics, environments and random numbers (bits), the evaluation's returns, and the lines of metrics.jsonl, but for
times and speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from unroll.agents.common.checkpoint import TENSORS, latest_checkpoint, read_state
from unroll.agents.common.machine import machine
from unroll.tables import markdown_table

ROOT = Path(__file__).parents[2]
COMMON = "--threads 1 --device cpu --evaluation.episodes 2"
PPO = "--agent ppo --n_envs 4 --n_steps 64 --backbone.d_model 32 --steps 12288 --checkpoint_every 512"
RUNS = {
    "decision, Hopper-v5": "--backbone.d_model 32 --backbone.n_layers 2 --dropout 0.1 --condition best "
    "--evaluation.targets [600] --steps 600 --checkpoint_every 20 --log_every 10",
    "PPO, CartPoleNoVel-v1": f"{PPO} --env CartPoleNoVel-v1",
    "PPO, Hopper-v5, normalised": f"{PPO} --env Hopper-v5 --normalize_observation true --normalize_reward true "
    "--schedule linear --backbone.name gru --use_sde true --evaluation.every 4096",
}
KILLED = "kill -9"
TERMINATED = "SIGTERM"
IN_A_WRITE = "inside of a write"
RESUMED = "runs resumed to the end"
IDENTICAL = "identical"
SLOWEST = "slowest SIGTERM, s"
KILLS_OF_A_RUN = 6
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # the second: before it has begun to learn


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the runs are left; default: a temporary folder")
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    counts: dict[str, Counter[Any]] = {name: Counter() for name in RUNS}
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
        wholes = {name: output / f"whole{i}" for i, name in enumerate(RUNS)}
        for name, folder in wholes.items():
            start(name, folder).wait()

        # Always the run that has had the fewest kills.
        done = 0
        while done < options.kills:
            name = min(RUNS, key=lambda name: kills(counts[name]))
            count = counts[name]
            folder = output / f"killed{count[RESUMED]}-{wholes[name].name}"
            disturb(name, folder, count, min(KILLS_OF_A_RUN, options.kills - done), chance)
            differences = compare(wholes[name], folder)
            count[RESUMED] += 1
            count[IDENTICAL] += not differences
            same = f"{count[IDENTICAL]} of {count[RESUMED]} identical"
            print(f"{name}: {kills(count)} kills, {same}", *differences, flush=True)
            done = sum(kills(count) for count in counts.values())

    columns = (KILLED, TERMINATED, IN_A_WRITE, RESUMED, IDENTICAL)
    rows = []
    for name, count in counts.items():
        rows.append([name, *[str(count[column]) for column in columns], f"{count[SLOWEST]:.1f}"])
    table = markdown_table(["run", *columns, SLOWEST], rows)
    print(f"\n{done} kills, seed {options.seed}; {machine()}\n\n{table}")
    return int(any(count[IDENTICAL] < count[RESUMED] for count in counts.values()))


def kills(count: Counter[Any]) -> int:
    return count[KILLED] + count[TERMINATED]


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    """Start a training in a new folder, or in one in which a process was killed."""
    arguments = f"{RUNS[name]} {COMMON}".split()
    if (folder / "config.yaml").is_file():
        arguments = ["--resume", "true", "--threads", "1"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--run_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def disturb(name: str, folder: Path, count: Counter[Any], most: int, chance: random.Random) -> None:
    """Train in ``folder`` to the end, through ``most`` kills or as many as come before it ends."""
    while not (folder / "evaluation.json").is_file():
        process = start(name, folder)
        patience = chance.uniform(0.5, 15)
        try:
            _, errors = process.communicate(timeout=patience if most > 0 else None)
        except subprocess.TimeoutExpired:
            number = signal.SIGKILL if chance.random() < 0.85 else signal.SIGTERM
            began = time.monotonic()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            most -= 1

            # A process that has ended by itself meanwhile counts as neither.
            if number == signal.SIGTERM and process.returncode in STOPPED:
                count[TERMINATED] += 1
                count[SLOWEST] = max(count[SLOWEST], time.monotonic() - began)
            elif process.returncode == -signal.SIGKILL:
                count[KILLED] += 1
                count[IN_A_WRITE] += any((folder / "checkpoints").glob(".*"))
        if process.returncode not in (0, -signal.SIGKILL, *STOPPED):
            raise SystemExit(f"{name}: exit code {process.returncode}: {errors}")


def compare(whole: Path, other: Path) -> list[str]:
    """Say what differs between two finished runs."""
    end = outcome(whole)
    other_end = outcome(other)
    return [what for what in end if end[what] != other_end[what]]


def outcome(run: Path) -> dict[str, Any]:
    """Read what a finished run has come to, without times and speeds."""
    checkpoint = latest_checkpoint(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "tensors": (checkpoint / TENSORS).read_bytes(),
        "state.json": _timeless(read_state(checkpoint)),
        "returns": json.loads((run / "evaluation.json").read_text())["results"],
        "metrics.jsonl": [_timeless(json.loads(line)) for line in lines],
    }


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith(("time/", "perf/")) and k != "t"}
    if isinstance(value, list):
        return [_timeless(part) for part in value]
    return value
