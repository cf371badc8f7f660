"""Scores of decision agents on one dataset: backbones and behaviour cloning, carried and window memory, five targets.

    python -m benchmarks.offline --dataset SOURCE --output FOLDER [--agents mingru,BC] [--parameters 150000]
                                 [--seeds 2] [--steps 10000] [--jobs 2]

The agents are ordinary runs of ``unroll train`` in FOLDER/<agent>/seed<k>, and ``unroll evaluate`` scores the last
checkpoint of each. What is there already is not run again. The table, in Markdown, has the mean over seeds of the
normalised score with its range in brackets, and the rank correlation of the achieved with the requested return (1: an
agent that is asked for more gets more): that of the mean over seeds and, in brackets, that of each seed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unroll.agents.common.machine import machine
from unroll.comparison.launch import python_command, python_environment
from unroll.policies.backbones import BACKBONES
from unroll.tables import exact, markdown_table

# Name → the flags of unroll train.
AGENTS = {name: ["--backbone.name", name, "--condition", "return"] for name in BACKBONES} | {
    "sequence BC (mingru)": ["--condition", "none", "--top_fraction", "1"],
    "BC": ["--config", "configs/decision/bc.yaml"],
    "10 % BC": ["--config", "configs/decision/bc10.yaml"],
}
MEMORIES = {name: ("carried", "window") for name in AGENTS} | {"BC": ("window",), "10 % BC": ("window",)}


def run_folder(options: argparse.Namespace, agent: str, seed: int) -> Path:
    name = re.sub("[^a-z0-9]+", "-", agent.lower()).strip("-")
    return options.output / name / f"seed{seed}"


def run(options: argparse.Namespace, agent: str, seed: int) -> None:
    """Train and evaluate one agent, unless that was done."""
    folder = run_folder(options, agent, seed)
    # An evaluation.json is the last thing that training leaves.
    commands = []
    if not (folder / "evaluation.json").exists():
        commands.append(train_command(options, agent, seed, folder))
    for memory in MEMORIES[agent]:
        output = folder / f"{memory}.json"
        if not output.exists():
            targets = ["--targets", *map(str, options.targets)]
            flags = ["--memory", memory, "--output", str(output), *targets]
            commands.append([*python_command("evaluate"), str(folder), *flags])
    for command in commands:
        environment = python_environment() | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def train_command(options: argparse.Namespace, agent: str, seed: int, folder: Path) -> list[str]:
    """Return the command that trains an agent, or goes on with a run that was cut off."""
    command = [*python_command("train"), "--run_dir", str(folder), "--threads", "1"]
    if folder.exists():
        return [*command, "--resume", "true"]
    command += ["--dataset", options.dataset, "--steps", str(options.steps), "--seed", str(seed)]
    command += ["--evaluation.every", "0", *AGENTS[agent]]
    if options.parameters and agent in BACKBONES:
        command += ["--backbone.match_parameters", str(options.parameters)]
    return command


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Return Spearman's rank correlation of values without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def table(options: argparse.Namespace) -> str:
    """Write the results in Markdown."""
    targets = [exact(target) for target in options.targets]
    rows = []
    for agent in options.agents:
        for memory in MEMORIES[agent]:
            # The cells have the mean over seeds and its range, for each target.
            scores = read_scores(options, agent, memory)
            cells = [f"{s.mean():.1f} ({s.min():.1f} … {s.max():.1f})" for s in scores.T]
            if len(cells) == 1:  # behaviour cloning is not asked for a return
                cells = cells * len(targets)
                rank = "–"
            else:
                of_mean = rank_correlation(scores.mean(0), options.targets)
                of_each = [f"{rank_correlation(row, options.targets):.2f}" for row in scores]
                rank = f"{of_mean:.2f} ({', '.join(of_each)})"
            rows.append([agent, memory, *cells, rank])
    return markdown_table(["agent", "memory", *targets, "rank correlation"], rows)


def read_scores(options: argparse.Namespace, agent: str, memory: str) -> np.ndarray:
    """Read the normalised scores [seeds, targets] of an agent."""
    scores = []
    for seed in range(options.seeds):
        file = run_folder(options, agent, seed) / f"{memory}.json"
        results = json.loads(file.read_text())["results"]
        scores.append([result["normalized_score"] for result in results])
    return np.array(scores)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True)
    names = ", ".join(AGENTS).replace("%", "%%")
    parser.add_argument("--agents", type=lambda text: text.split(","), default=list(AGENTS), help=names)
    parser.add_argument("--parameters", type=int, default=0, help="of every backbone; 0: d_model 64 × 2 layers")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--targets", type=float, nargs="+", default=[600, 1200, 1800, 2700, 3600])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    # The first seed of every agent comes first.
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = []
        for seed in range(options.seeds):
            for agent in options.agents:
                jobs.append(pool.submit(run, options, agent, seed))
        for job in jobs:
            job.result()

    name = Path(options.dataset).stem
    size = "d_model 64 × 2 layers"
    if options.parameters:
        size = f"{options.parameters:,} parameters in a backbone"
    print(f"{name}, {size}, {options.steps} updates, {options.seeds} seeds, last checkpoint, 20 episodes a target\n")
    print(f"{table(options)}\n\n{machine()}")


if __name__ == "__main__":
    main()
