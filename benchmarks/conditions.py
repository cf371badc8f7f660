"""Ways to learn from data of mixed quality: by imitating the best, for the best return, or for one asked for.

    python -m benchmarks.conditions --datasets a.hdf5 b.hdf5 --output FOLDER [--agents "default,10 % BC"] [--seeds 3]
                                    [--steps 5000] [--jobs 2] [-- --backbone.d_model 64 …]

The agents are ordinary runs of ``unroll train`` in FOLDER/<set>/<agent>/seed<k>, scored by their last checkpoint. What
is there already is not run again; flags behind ``--`` go to every run. An agent that is asked for returns is scored at
the best episode of the data and at twice that. Scores: 0 and 100 are the mean returns of the worst and of the best
episodes that make up a tenth of the steps. The table, in Markdown, has the mean and in brackets every seed; the last
column is the interquartile mean over all sets and seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unroll.agents.common.machine import machine
from unroll.comparison.launch import python_command, python_environment
from unroll.comparison.statistics import iqm
from unroll.envs.datasets.sources import load_episodes
from unroll.tables import markdown_table

# Name → the flags of unroll train.
AGENTS = {
    "default": [],
    "best": ["--condition", "best"],
    "return": ["--condition", "return"],
    "10 % BC": ["--config", "configs/decision/bc10.yaml"],
    "25 % BC": ["--config", "configs/decision/bc10.yaml", "--top_fraction", "0.25"],
    "BC": ["--config", "configs/decision/bc.yaml"],
    "squared error": ["--action_modes", "0"],
    "five Gaussians": ["--action_modes", "5"],
    "LSTM": ["--backbone.name", "lstm"],
    "Transformer": ["--backbone.name", "transformer"],
}


class Scale(NamedTuple):
    """The returns that are 0 and 100, and the best of the data."""

    zero: float
    hundred: float
    best: float


def scale_of(dataset: str) -> Scale:
    """Return the means of the worst and of the best episodes that make up a tenth of the steps, and the best."""
    episodes = load_episodes(dataset)
    order = np.argsort(episodes.returns)
    steps = np.cumsum(episodes.lengths[order])
    worst = episodes.returns[order[: np.searchsorted(steps, 0.1 * steps[-1]) + 1]]
    return Scale(float(worst.mean()), float(episodes.top(0.1).returns.mean()), float(episodes.returns.max()))


def folder_of(options: argparse.Namespace, dataset: str, agent: str, seed: int) -> Path:
    words = [re.sub("[^a-z0-9]+", "-", word.lower()).strip("-") for word in (Path(dataset).stem, agent)]
    return options.output.joinpath(*words, f"seed{seed}")


def run(options: argparse.Namespace, dataset: str, agent: str, seed: int) -> None:
    """Train and score one agent, unless that was done."""
    folder = folder_of(options, dataset, agent, seed)
    if (folder / "evaluation.json").exists():
        return
    flags = ["--dataset", dataset, *AGENTS[agent], "--seed", str(seed), "--steps", str(options.steps)]
    flags += ["--evaluation.every", "0", "--threads", "1", "--device", "cpu", "--run_dir", str(folder)]
    if "return" in AGENTS[agent]:
        best = scale_of(dataset).best
        twice = 2 * best if best > 0 else best / 2
        flags += ["--evaluation.targets", str(best), str(twice)]
    command = [*python_command("train"), *flags, *options.flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=python_environment() | {"OMP_NUM_THREADS": "1"})


def scores(options: argparse.Namespace, dataset: str, agent: str, scale: Scale) -> dict[str, list[float]]:
    """Return the score of each seed, by what was asked for."""
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        path = folder_of(options, dataset, agent, seed) / "evaluation.json"
        if not path.exists():
            continue
        for i, result in enumerate(json.loads(path.read_text())["results"]):
            name = agent
            if result["target_return"] is not None:
                name += ", twice the best" if i else ", the best of the data"
            score = 100 * (result["return_mean"] - scale.zero) / (scale.hundred - scale.zero)
            found.setdefault(name, []).append(score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--agents", default="default,best,return,10 % BC")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=1)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.flags = words[end + 1 :]
    agents = options.agents.split(",")

    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [
            pool.submit(run, options, dataset, agent, seed)
            for seed in range(options.seeds)
            for dataset in options.datasets
            for agent in agents
        ]
        for one in waiting:
            one.result()

    print(f"{machine()}\n")
    table: dict[str, list[str]] = {}
    everything: dict[str, list[float]] = {}
    for column, dataset in enumerate(options.datasets):
        scale = scale_of(dataset)
        for agent in agents:
            for name, values in scores(options, dataset, agent, scale).items():
                row = table.setdefault(name, ["–"] * len(options.datasets))
                row[column] = f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})"
                everything.setdefault(name, []).extend(values)
    rows = [[name, *cells, f"{float(iqm(np.array(everything[name]))):.0f}"] for name, cells in table.items()]
    print(markdown_table(["agent", *(Path(dataset).stem for dataset in options.datasets), "IQM"], rows))


if __name__ == "__main__":
    main()
