"""Steps per second of RecurrentPPO against sb3-contrib's, and of its backbones against each other.

    python -m benchmarks.recurrent_ppo [--tables peers backbones memory] [--output FOLDER]    from the repository's root

A step is one of one environment, in whole iterations: the rollout and ten epochs of training. ``peers``: the same
network with the same number of parameters, environments, batch size and epochs in both, sb3-contrib's as 1.
``backbones``: the policy's defaults, the LSTM of the same size as 1. ``memory``: bytes of recurrent states kept with a
rollout. All rows of a task, or of a length, take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.grid import backbone_names, positive, positives
from benchmarks.recurrent_peers import (
    NETWORKS,
    TASKS,
    Iterations,
    contrib,
    ours,
    parameters,
    with_backbone,
)
from benchmarks.timing import medians, report
from unroll.policies.backbones import BACKBONES, map_state

Row = dict[str, Any]


def peers(options: argparse.Namespace) -> Iterator[Row]:
    """Every network and batch size, sb3-contrib's before ours at each length of sequences."""
    for task in options.tasks:
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
            yield {
                "task": task,
                "network": network,
                "parameters": f"{parameters(run.algorithm):,}",
                "batch": batch,
                "RecurrentPPO": f"ours, sequences of {length}" if length else "sb3-contrib's",
                "steps/s": rates[network, batch, length],
                "× sb3-contrib's": rates[network, batch, length] / rates[network, batch, 0],
                **shares(run, options.repeats),
                "episodes begun": statistics.mean(run.episodes[-options.repeats :]),
            }


def backbones(options: argparse.Namespace) -> Iterator[Row]:
    """All of them at the shortest rollout; LSTM and minGRU at the others, and at another width."""
    shortest = min(options.rollouts)
    for steps in options.rollouts:
        names = list(dict.fromkeys(["lstm", "mingru", *(options.backbones if steps == shortest else ())]))
        rows = [(name, 64) for name in names] + [(name, options.hidden) for name in ("lstm", "mingru")]
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
    """After a real rollout of each length, by the network with two LSTMs."""
    for steps in options.rollouts:
        theirs = contrib("cartpole", "two LSTMs", options.hidden, n_steps=steps).rollout_buffer
        kept = sum(
            getattr(theirs, f"{part}_states_{whose}").nbytes for part in ("hidden", "cell") for whose in ("pi", "vf")
        )
        yield {
            "n_steps": steps,
            "RecurrentPPO": "sb3-contrib's",
            "bytes of states": f"{kept:,}",
            "sb3-contrib's / this": 1,
        }
        for length in sorted({steps, 32}, reverse=True):
            algorithm = ours("cartpole", "two LSTMs", options.hidden, n_steps=steps, sequence_length=length)
            _, callback = algorithm._setup_learn(10**9)
            algorithm.collect_rollouts(algorithm.get_env(), callback, algorithm.rollout_buffer, steps)  # type: ignore[arg-type]
            sizes: list[int] = []
            map_state(lambda part, sizes=sizes: sizes.append(part.nbytes) or part, tuple(algorithm._states))
            yield {
                "n_steps": steps,
                "RecurrentPPO": f"ours, sequences of {length}",
                "bytes of states": f"{sum(sizes):,}",
                "sb3-contrib's / this": kept / sum(sizes),
            }


def steps_per_second(runs: dict[Any, Iterations], options: argparse.Namespace) -> dict[Any, float]:
    """Of whole iterations, the median of ``repeats``."""
    seconds = medians(runs, options.repeats, options.warm)
    return {key: runs[key].algorithm.n_steps * 8 / value for key, value in seconds.items()}


def shares(run: Iterations, repeats: int) -> Row:
    """Of an iteration's seconds, medians of each part."""
    parts = [statistics.median(part) for part in zip(*run.seconds[-repeats:], strict=True)]
    names = ("env.step, %", "rest of rollout, %", "train, %")
    return {name: 100 * part / sum(parts) for name, part in zip(names, parts, strict=True)}


TABLES = {
    "peers": ("Environment steps per second of whole iterations, the same network in both", peers),
    "backbones": ("Environment steps per second of whole iterations, the policy's defaults", backbones),
    "memory": ("Recurrent states kept with a rollout of 8 environments, two LSTMs", memory),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent_ppo", description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of peers")
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
