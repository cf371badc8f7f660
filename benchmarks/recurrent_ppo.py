"""Steps per second of RecurrentPPO against sb3-contrib's, and of its backbones against each other.

    python -m benchmarks.recurrent_ppo [--tables peers defaults backbones memory] [--output FOLDER]

from the repository's root

A step is one step of one environment. Whole iterations are timed: the rollout and ten epochs of training. The tables:

* peers: the same network in both, with the same number of parameters, environments, batch size and epochs;
  sb3-contrib's speed is 1.
* defaults: the defaults of both but for the width; sb3-contrib's speed is 1.
* backbones: the policy's defaults; the speed of the LSTM of the same size is 1.
* memory: bytes of recurrent states that are kept with a rollout.

All rows of a task, or of a length, take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.grid import backbone_names, positive, positives
from benchmarks.recurrent_peers import (
    ENVIRONMENTS,
    NETWORKS,
    TASKS,
    Iterations,
    contrib,
    contrib_defaults,
    ours,
    parameters,
    with_backbone,
)
from benchmarks.timing import medians, report
from unroll.policies.backbones import BACKBONES, map_state

Row = dict[str, Any]

# The backbones of every table, and the width of our policy's default.
COMPARED = ["lstm", "mingru"]
DEFAULT_WIDTH = 64


def peers(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network and batch size: sb3-contrib's, then ours at each length of sequences."""
    for task in options.tasks:
        # The key is (network, batch, length of our sequences); length 0 is sb3-contrib's.
        runs: dict[tuple[str, int, int], Iterations] = {}
        for network in NETWORKS:
            for batch in options.batches:
                sizes = dict(n_steps=options.steps, batch_size=batch)
                runs[network, batch, 0] = Iterations(contrib(task, network, options.hidden, **sizes))
                for length in options.lengths:
                    mine = ours(task, network, options.hidden, sequence_length=length, **sizes)
                    runs[network, batch, length] = Iterations(mine)
        rates = steps_per_second(runs, options)
        for (network, batch, length), run in runs.items():
            whose = f"ours, sequences of {length}" if length else "sb3-contrib's"
            yield {
                "task": task,
                "network": network,
                "parameters": f"{parameters(run.algorithm):,}",
                "batch": batch,
                "RecurrentPPO": whose,
                "steps/s": rates[network, batch, length],
                "× sb3-contrib's": rates[network, batch, length] / rates[network, batch, 0],
                **shares(run, options.repeats),
                "episodes begun": statistics.mean(run.episodes[-options.repeats :]),
            }


def defaults(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for sb3-contrib's defaults and for ours with each of two backbones, at one width."""
    for task in options.tasks:
        runs: dict[str, Iterations] = {"sb3-contrib's": Iterations(contrib_defaults(task, DEFAULT_WIDTH))}
        for name in COMPARED:
            runs[f"ours, {name}"] = Iterations(with_backbone(task, name, DEFAULT_WIDTH))
        rates = steps_per_second(runs, options)
        for whose, run in runs.items():
            yield {
                "task": task,
                "RecurrentPPO": whose,
                "parameters": f"{parameters(run.algorithm):,}",
                "steps/s": rates[whose],
                "× sb3-contrib's": rates[whose] / rates["sb3-contrib's"],
                **shares(run, options.repeats),
                "episodes begun": statistics.mean(run.episodes[-options.repeats :]),
            }


def backbones(options: argparse.Namespace) -> Iterator[Row]:
    """Yield rows of all backbones at the shortest rollout, and of two at the others and at another width."""
    # Every row is compared with the LSTM of its width.
    for steps in options.rollouts:
        names = COMPARED
        if steps == min(options.rollouts):
            names = list(dict.fromkeys([*COMPARED, *options.backbones]))
        rows = [(name, DEFAULT_WIDTH) for name in names] + [(name, options.hidden) for name in COMPARED]
        runs = {(name, d): Iterations(with_backbone("cartpole", name, d, n_steps=steps)) for name, d in rows}
        rates = steps_per_second(runs, options)
        for (name, d), run in runs.items():
            yield {
                "n_steps": steps,
                "backbone": name,
                "d_model": d,
                "steps/s": rates[name, d],
                "× lstm": rates[name, d] / rates["lstm", d],
                **shares(run, options.repeats),
            }


def memory(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the bytes after a rollout of each length, by the network with two LSTMs."""
    for steps in options.rollouts:
        buffer = contrib("cartpole", "two LSTMs", options.hidden, n_steps=steps).rollout_buffer
        arrays = ("hidden_states_pi", "hidden_states_vf", "cell_states_pi", "cell_states_vf")
        kept = sum(getattr(buffer, name).nbytes for name in arrays)
        yield {
            "n_steps": steps,
            "RecurrentPPO": "sb3-contrib's",
            "bytes of states": f"{kept:,}",
            "sb3-contrib's / this": 1,
        }
        for length in sorted({steps, 32}, reverse=True):
            ours_kept = bytes_kept(options, steps, length)
            yield {
                "n_steps": steps,
                "RecurrentPPO": f"ours, sequences of {length}",
                "bytes of states": f"{ours_kept:,}",
                "sb3-contrib's / this": kept / ours_kept,
            }


def bytes_kept(options: argparse.Namespace, steps: int, length: int) -> int:
    """Play a rollout with our RecurrentPPO; return the bytes of the states that are kept with it."""
    algorithm = ours("cartpole", "two LSTMs", options.hidden, n_steps=steps, sequence_length=length)
    _, callback = algorithm._setup_learn(10**9)
    algorithm.collect_rollouts(algorithm.get_env(), callback, algorithm.rollout_buffer, steps)  # type: ignore[arg-type]
    sizes: list[int] = []

    def count(part: Tensor) -> Tensor:
        sizes.append(part.nbytes)
        return part

    map_state(count, tuple(algorithm._states))
    return sum(sizes)


def steps_per_second(runs: dict[Any, Iterations], options: argparse.Namespace) -> dict[Any, float]:
    """Measure the environment steps per second of whole iterations, as the median of ``repeats``."""
    seconds = medians(runs, options.repeats, options.warm)
    return {key: runs[key].algorithm.n_steps * ENVIRONMENTS / value for key, value in seconds.items()}


def shares(run: Iterations, repeats: int) -> Row:
    """Return the share of each part in an iteration, by the medians of its seconds."""
    parts = [statistics.median(part) for part in zip(*run.seconds[-repeats:], strict=True)]
    names = ("env.step, %", "rest of rollout, %", "train, %")
    return {name: 100 * part / sum(parts) for name, part in zip(names, parts, strict=True)}


TABLES = {
    "peers": ("Environment steps per second of whole iterations, the same network in both", peers),
    "defaults": ("Environment steps per second of whole iterations, the defaults of both at width 64", defaults),
    "backbones": ("Environment steps per second of whole iterations, the policy's defaults", backbones),
    "memory": ("Recurrent states kept with a rollout of 8 environments, two LSTMs", memory),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent_ppo", description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of peers and defaults")
    parser.add_argument("--batches", type=positives, default=[128, 256], metavar="N,…", help="of peers")
    parser.add_argument("--lengths", type=positives, default=[128, 32], metavar="L,…", help="our sequences, of peers")
    parser.add_argument("--steps", type=positive, default=128, help="n_steps of peers; 8 environments always")
    parser.add_argument("--backbones", type=backbone_names, default=list(BACKBONES), help="a,b,…; default: all")
    parser.add_argument(
        "--rollouts", type=positives, default=[128, 512, 2048], metavar="T,…", help="n_steps of the rest"
    )
    parser.add_argument("--hidden", type=positive, default=256, help="width of the LSTMs")
    parser.add_argument("--warm", type=int, default=2, help="iterations before those that count")
    parser.add_argument("--repeats", type=positive, default=5, help="iterations of each row, whose median counts")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--output", type=Path, help="folder for a JSON file of each table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.tables:
        title, table = TABLES[name]
        try:
            rows = list(table(options))
        except ImportError as error:
            parser.error(f"{name} needs sb3-contrib, pip install -e '.[peers]': {error}")
        report(f"{title}; {options.threads} thread(s)", rows, options.output and options.output / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
