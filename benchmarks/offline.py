"""Scores of decision agents on one dataset: backbones and behaviour cloning, carried and window memory, five targets.

    python -m benchmarks.offline --dataset SOURCE --output FOLDER [--agents mingru,BC] [--parameters 150000]
                                 [--seeds 2] [--steps 10000] [--jobs 2]

Ordinary runs of train.py in FOLDER/<agent>/seed<k>, the last checkpoint of each evaluated by evaluate.py; what is there
already is not run again. Prints the table in Markdown: mean over seeds of the normalised score (its range in brackets),
and the rank correlation of the achieved with the requested return (1: who is asked for more gets more), of the mean
over seeds and, in brackets, of each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unroll.agents.common.machine import machine
from unroll.policies.backbones import BACKBONES
from unroll.tables import exact

AGENTS = {name: ["--backbone.name", name] for name in BACKBONES} | {
    "sequence BC (mingru)": ["--condition", "none"],
    "BC": ["--config", "configs/decision/bc.yaml"],
    "10 % BC": ["--config", "configs/decision/bc10.yaml"],
}
MEMORIES = {name: ("carried", "window") for name in AGENTS} | {"BC": ("window",), "10 % BC": ("window",)}


def run_folder(options: argparse.Namespace, agent: str, seed: int) -> Path:
    return options.output / re.sub("[^a-z0-9]+", "-", agent.lower()).strip("-") / f"seed{seed}"


def run(options: argparse.Namespace, agent: str, seed: int) -> None:
    """Train and evaluate one agent, unless that was done."""
    folder = run_folder(options, agent, seed)
    threads = ["--threads", "1"]
    train = ["train.py", "--dataset", options.dataset, "--steps", str(options.steps), "--seed", str(seed), *threads]
    commands = [[*train, "--run_dir", str(folder), "--evaluation.every", "0", *AGENTS[agent]]]
    if options.parameters and agent in BACKBONES:
        commands[0] += ["--backbone.match_parameters", str(options.parameters)]
    if folder.exists():
        commands = [["train.py", "--resume", "true", "--run_dir", str(folder), *threads]]
    if (folder / "evaluation.json").exists():
        commands = []
    for memory in MEMORIES[agent]:
        output = folder / f"{memory}.json"
        if not output.exists():
            targets = ["--targets", *map(str, options.targets)]
            commands.append(["evaluate.py", str(folder), "--memory", memory, "--output", str(output), *targets])
    for command in commands:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment)


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's, for values without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def table(options: argparse.Namespace) -> str:
    """The results in Markdown."""
    targets = [exact(target) for target in options.targets]
    lines = [f"| agent | memory | {' | '.join(targets)} | rank correlation |", "|---" * (len(targets) + 3) + "|"]
    for agent in options.agents:
        for memory in MEMORIES[agent]:
            files = [run_folder(options, agent, k) / f"{memory}.json" for k in range(options.seeds)]
            results = [json.loads(file.read_text())["results"] for file in files]
            scores = np.array([[result["normalized_score"] for result in one] for one in results])
            cells = [f"{s.mean():.1f} ({s.min():.1f} … {s.max():.1f})" for s in scores.T]
            if scores.shape[1] == 1:  # behaviour cloning is not asked for a return
                cells, rank = cells * len(targets), "–"
            else:
                rank = f"{rank_correlation(scores.mean(0), options.targets):.2f}"
                rank += f" ({', '.join(f'{rank_correlation(s, options.targets):.2f}' for s in scores)})"
            lines.append(f"| {agent} | {memory} | {' | '.join(cells)} | {rank} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--agents", type=lambda names: names.split(","), default=list(AGENTS), help=", ".join(AGENTS))
    parser.add_argument("--parameters", type=int, default=0, help="of every backbone; 0: d_model 128 × 3 layers")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--targets", type=float, nargs="+", default=[600, 1200, 1800, 2700, 3600])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run, options, agent, seed) for seed in range(options.seeds) for agent in options.agents]
        for job in jobs:
            job.result()
    name = Path(options.dataset).stem
    size = f"{options.parameters:,} parameters in a backbone" if options.parameters else "d_model 128 × 3 layers"
    print(f"{name}, {size}, {options.steps} updates, {options.seeds} seeds, last checkpoint, 20 episodes a target\n")
    print(f"{table(options)}\n\n{machine()}")


if __name__ == "__main__":
    main()
