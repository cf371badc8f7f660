"""Returns of RecurrentPPO on one config: every backbone, a control without memory, and Stable-Baselines3's PPO.

    python -m benchmarks.online --config configs/ppo/cartpole_masked.yaml --output FOLDER [--agents mingru,lstm,…]
                                [--seeds 5] [--jobs 2] [-- flags of train.py, e.g. --env TMaze50-v0]

Ordinary runs of train.py in FOLDER/<agent>/seed<k>, one thread each; what is there already is not run again, and what
was cut off goes on. Prints a table in Markdown, of the last checkpoint and never of the best: for each agent the mean
over seeds of the return of 20 episodes, its range, each seed's, and the return with the memory wiped before every step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agents.machine import machine
from benchmarks.grid import positive, spread
from benchmarks.timing import markdown
from policies.backbones import BACKBONES

CONTROL = "benchmarks.memoryless:Memoryless"
REFERENCE = "Stable-Baselines3's PPO"
AGENTS = {name: name for name in BACKBONES} | {"memoryless": CONTROL, "sb3": REFERENCE}


def run(options: argparse.Namespace, agent: str, seed: int) -> None:
    """Train and evaluate one agent, unless that was done."""
    folder = options.output / agent / f"seed{seed}"
    if (folder / "evaluation.json").exists():
        return
    backbone = ["--backbone.name", AGENTS[agent]]
    shared = ["--config", options.config, *options.flags, "--seed", str(seed), "--threads", "1"]
    if agent == "sb3":
        command = ["-m", "benchmarks.sb3_ppo", *shared, "--run_dir", str(folder)]
    elif list(folder.glob("checkpoints/step_*")):
        command = ["train.py", "--resume", "true", "--run_dir", str(folder), "--threads", "1", *backbone]
    else:
        command = ["train.py", *shared, *backbone, "--run_dir", str(folder), "--evaluation.every", "0"]
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if outcome.returncode:
        raise SystemExit(f"{agent}, seed {seed}: {outcome.stderr.strip() or outcome.returncode}")
    print(f"{agent}, seed {seed}: done", file=sys.stderr, flush=True)


def row(options: argparse.Namespace, agent: str) -> dict[str, Any]:
    """What an agent's seeds came to."""
    folders = [options.output / agent / f"seed{seed}" for seed in range(options.seeds)]
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    returns = [evaluation["results"][0]["return_mean"] for evaluation in evaluations]
    digits = 1 if max(map(abs, returns)) > 10 else 2
    wiped = [e["ablation"]["return_mean"] for e in evaluations if "ablation" in e]
    return {
        "agent": REFERENCE if agent == "sb3" else agent,
        "return, last checkpoint": spread(returns, digits),
        "of each seed": ", ".join(f"{value:.{digits}f}" for value in returns),
        "memory wiped": spread(wiped, digits) if wiped else "–",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--agents", type=lambda names: names.split(","), default=list(AGENTS), help=", ".join(AGENTS))
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--jobs", type=positive, default=2)
    parser.add_argument("flags", nargs="*", help="after --: flags of train.py")
    options = parser.parse_args()
    if unknown := set(options.agents) - set(AGENTS):
        parser.error(f"no agent {', '.join(sorted(unknown))}; there are {', '.join(AGENTS)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run, options, agent, seed) for seed in range(options.seeds) for agent in options.agents]
        for job in jobs:
            job.result()
    first = json.loads((options.output / options.agents[0] / "seed0/evaluation.json").read_text())
    print(f"{first['env']}, {options.config}, {first['steps']:,} steps, {options.seeds} seed(s)\n")
    print(f"{markdown([row(options, agent) for agent in options.agents])}\n\n{machine()}")


if __name__ == "__main__":
    main()
