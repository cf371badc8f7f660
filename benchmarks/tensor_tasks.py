"""Rollouts on the device against rollouts by way of arrays: the same task, network and sizes.

    python -m benchmarks.tensor_tasks [--env CartPoleNoVel-v1] [--n_envs 8,64,512] [--output FILE]

from the repository's root

A step is one step of one environment. Both run RecurrentPPO's default network and epochs with a learning rate so small
that the policy stays untrained. `arrays` steps Gymnasium's environments one after another (vector serial), `tensors`
all at once (vector tensor). All rows take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.grid import positive, positives
from benchmarks.recurrent_peers import Iterations
from benchmarks.timing import medians, report
from unroll.agents import RecurrentPPO
from unroll.envs import make_vec_env
from unroll.envs.tensor_tasks import TENSOR_TASKS, make_tensor_env

Row = dict[str, Any]
ARRAYS = "arrays"
TENSORS = "tensors"


def make_agent(env_id: str, n_envs: int, path: str, device: str, n_steps: int, n_epochs: int) -> RecurrentPPO:
    """Make an agent whose environments are arrays or tensors."""
    if path == ARRAYS:
        env: Any = make_vec_env(env_id, n_envs)
    else:
        env = make_tensor_env(env_id, n_envs, device)
    return RecurrentPPO("MlpPolicy", env, n_steps=n_steps, n_epochs=n_epochs, learning_rate=1e-6, seed=0, device=device)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each number of environments and each path."""
    runs: dict[tuple[int, str], Iterations] = {}
    for n_envs in options.n_envs:
        for path in (ARRAYS, TENSORS):
            agent = make_agent(options.env, n_envs, path, options.device, options.n_steps, options.n_epochs)
            runs[n_envs, path] = Iterations(agent)
    medians(runs, options.repeats, options.warm)
    for (n_envs, path), run in runs.items():
        rollout, training = seconds_of(run, options.repeats)
        rollout_before, training_before = seconds_of(runs[n_envs, ARRAYS], options.repeats)
        steps = n_envs * options.n_steps
        yield {
            "environments": n_envs,
            "rollout": path,
            "rollout steps/s": steps / rollout,
            "× arrays": rollout_before / rollout,
            "steps/s in all": steps / (rollout + training),
            "× arrays in all": (rollout_before + training_before) / (rollout + training),
            "rollout, %": 100 * rollout / (rollout + training),
        }


def seconds_of(run: Iterations, repeats: int) -> tuple[float, float]:
    """Return the medians of the seconds of a rollout and of an update."""
    measured = run.seconds[-repeats:]
    rollouts = [stepping + rest for stepping, rest, _ in measured]
    return statistics.median(rollouts), statistics.median(training for _, _, training in measured)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensor_tasks", description=__doc__.split("\n")[0])
    parser.add_argument("--env", choices=TENSOR_TASKS, default="CartPoleNoVel-v1")
    parser.add_argument("--n_envs", type=positives, default=[8, 64, 512], metavar="N,…")
    parser.add_argument("--n_steps", type=positive, default=128)
    parser.add_argument("--n_epochs", type=positive, default=10)
    parser.add_argument("--warm", type=int, default=1, help="iterations before those that count")
    parser.add_argument("--repeats", type=positive, default=5, help="iterations of each row, whose median counts")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    title = f"{options.env}, rollouts by arrays and by tensors; {options.threads} thread(s), {options.device}"
    report(title, list(rows(options)), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
