"""Kill training runs at random moments and compare what they end with to undisturbed runs.

    python -m benchmarks.reliability kills [--kills 50] [--seed 0] [--output folder]

Decision agents and RecurrentPPO are trained by train.py in processes of their own, which get kill -9 (85 %) or SIGTERM
(15 %) at a random moment, from their start on, and are started again with ``--resume true``. Compared are the last
checkpoint's weights, optimizer, statistics, environments and random numbers (bits), the evaluation's returns, and the
lines of metrics.jsonl, but for times and speeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import markdown
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.common.machine import machine

TRAIN = Path(__file__).parents[2] / "train.py"
COMMON = ["--threads", "1", "--device", "cpu", "--evaluation.episodes", "2"]
SMALL_PPO = ["--agent", "ppo", "--n_envs", "4", "--n_steps", "64", "--backbone.d_model", "32"]
NORMALIZED = ["--normalize_observation", "true", "--normalize_reward", "true", "--schedule", "linear"]
RUNS = {
    "decision, Hopper-v5": [
        *["--backbone.d_model", "32", "--backbone.n_layers", "2", "--dropout", "0.1", "--evaluation.targets", "[600]"],
        *["--steps", "600", "--checkpoint_every", "20", "--log_every", "10"],
    ],
    "PPO, CartPoleNoVel-v1": [*SMALL_PPO, "--env", "CartPoleNoVel-v1", "--steps", "12288", "--checkpoint_every", "512"],
    "PPO, Hopper-v5, normalised": [
        *[*SMALL_PPO, *NORMALIZED, "--env", "Hopper-v5", "--backbone.name", "gru", "--use_sde", "true"],
        *["--steps", "12288", "--checkpoint_every", "512", "--evaluation.every", "4096"],
    ],
}


@dataclasses.dataclass
class Tally:
    killed: int = 0
    terminated: int = 0
    in_a_write: int = 0
    runs: int = 0
    identical: int = 0
    slowest_stop: float = 0.0

    @property
    def kills(self) -> int:
        return self.killed + self.terminated


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the runs are left; default: a temporary folder")
    options = parser.parse_args(arguments)
    chance, tallies = random.Random(options.seed), {name: Tally() for name in RUNS}
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
        whole = {name: output / f"whole{i}" for i, name in enumerate(RUNS)}
        for name, folder in whole.items():
            start(name, folder).wait()
        while (done := sum(tally.kills for tally in tallies.values())) < options.kills:
            name = min(RUNS, key=lambda name: tallies[name].kills)
            tally = tallies[name]
            folder = output / f"killed{tally.runs}-{list(RUNS).index(name)}"
            disturb(name, folder, tally, min(6, options.kills - done), chance)
            tally.runs += 1
            differences = compare(whole[name], folder)
            tally.identical += not differences
            print(f"{name}: {tally.kills} kills, {tally.identical} of {tally.runs} identical", *differences, flush=True)
    rows = [
        {
            "run": name,
            "kill -9": tally.killed,
            "SIGTERM": tally.terminated,
            "inside of a write": tally.in_a_write,
            "runs resumed to the end": tally.runs,
            "identical": tally.identical,
            "slowest SIGTERM, s": f"{tally.slowest_stop:.1f}",
        }
        for name, tally in tallies.items()
    ]
    kills = sum(tally.kills for tally in tallies.values())
    print(f"\n{kills} kills, seed {options.seed}; {machine()}\n\n{markdown(rows)}")
    return 0 if all(tally.identical == tally.runs for tally in tallies.values()) else 1


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    """train.py on its way, in a new folder or in one that a process was killed in."""
    resume = (folder / "config.yaml").is_file()
    arguments = ["--resume", "true", "--threads", "1"] if resume else [*RUNS[name], *COMMON]
    command = [sys.executable, str(TRAIN), *arguments, "--run_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def disturb(name: str, folder: Path, tally: Tally, kills: int, chance: random.Random) -> None:
    """Train in ``folder`` to the end, through ``kills`` kills or as many as come before it ends."""
    while not (folder / "evaluation.json").is_file():
        process, patience = start(name, folder), chance.uniform(0.5, 15)
        try:
            _, errors = process.communicate(timeout=patience if kills > 0 else None)
        except subprocess.TimeoutExpired:
            number = signal.SIGKILL if chance.random() < 0.85 else signal.SIGTERM
            began = time.monotonic()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            if number == signal.SIGTERM and process.returncode in (143, -signal.SIGTERM):  # - : before it learned
                tally.terminated += 1
                tally.slowest_stop = max(tally.slowest_stop, time.monotonic() - began)
            elif process.returncode == -signal.SIGKILL:
                tally.killed += 1
                tally.in_a_write += any((folder / "checkpoints").glob(".*"))
            kills -= 1
        if process.returncode not in (0, 143, -signal.SIGTERM, -signal.SIGKILL):
            raise SystemExit(f"{name}: exit code {process.returncode}: {errors}")


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs."""
    (tensors, state), (others, other) = (read_checkpoint(latest_checkpoint(folder)) for folder in (whole, killed))
    names = sorted(tensors.keys() ^ others.keys())
    names += [name for name in tensors.keys() & others.keys() if not torch.equal(tensors[name], others[name])]
    differences = [f"{len(names)} tensors ({names[0]} …)"] if names else []
    if _timeless(state) != _timeless(other):
        differences.append("state.json")
    returns = [json.loads((folder / "evaluation.json").read_text())["results"] for folder in (whole, killed)]
    if returns[0] != returns[1]:
        differences.append("returns")
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, killed)]
    if [_timeless(line) for line in lines[0]] != [_timeless(line) for line in lines[1]]:
        differences.append("metrics.jsonl")
    return differences


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith(("time/", "perf/")) and k != "t"}
    return [_timeless(part) for part in value] if isinstance(value, list) else value
