"""What images cost a decision agent: RAM and updates per second, beside rows of numbers.

    python -m benchmarks.images [--steps 20000]          run from the root of the repository

The data are random, in episodes of 200 steps. Every kind of observation has a process of its own. Its RAM is what the
process has more of, in memory that is no file's, once the agent is made and has learned from a batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from queue import Queue

import gymnasium as gym
import numpy as np
import torch

from benchmarks.timing import report
from unroll.agents import DecisionAgent
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import Parts, row_bytes

KINDS: dict[str, Parts | int] = {
    "Hopper, 11 numbers": 11,
    "MiniGrid, 7 × 7 × 3 and a direction": {"direction": (4,), "image": (7, 7, 3)},
    "CarRacing, 96 × 96 × 3": {"": (96, 96, 3)},
}
LENGTH = 200
BATCH = 64
CONTEXT = 20


def random_episodes(kind: Parts | int, steps: int) -> Episodes:
    """Make episodes of noise with observations of this kind: parts, or so many numbers."""
    rng = np.random.default_rng(0)
    n = steps // LENGTH * LENGTH
    parts = None if isinstance(kind, int) else kind
    if isinstance(kind, int):
        observations = rng.normal(size=(n, kind)).astype(np.float32)
    else:
        observations = rng.integers(0, 11, size=(n, row_bytes(kind)), dtype=np.uint8)
        observations[:, :16] = 0  # the direction of MiniGrid: any bytes are no numbers
    return Episodes(
        observations=observations,
        actions=rng.integers(7, size=n),
        rewards=rng.normal(size=n).astype(np.float32),
        lengths=np.full(n // LENGTH, LENGTH),
        terminated=np.ones(n // LENGTH, bool),
        truncated=np.zeros(n // LENGTH, bool),
        action_space=gym.spaces.Discrete(7),
        name="random",
        parts=parts,
    )


def own_memory() -> int:
    """Return the bytes of this process's memory that no file holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10  # given in kB
    return 0


def measure(kind: Parts | int, steps: int, updates: int, answers: Queue[tuple[float, ...]]) -> None:
    """Make an agent and let it learn. Answer with bytes of the data, bytes of RAM, updates per second, parameters."""
    torch.set_num_threads(1)
    before = own_memory()
    episodes = random_episodes(kind, steps)
    agent = DecisionAgent(episodes, context=CONTEXT, batch_size=BATCH, top_fraction=1.0, device="cpu")
    agent.learn(1)
    memory = own_memory() - before
    times = []
    for _ in range(updates):
        began = time.perf_counter()
        agent.update()
        times.append(time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    answers.put((episodes.observations.nbytes, memory, 1 / float(np.median(times)), parameters))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--output", help="a JSON file")
    options = parser.parse_args()

    rows = []
    context = multiprocessing.get_context("spawn")
    for name, kind in KINDS.items():
        answers: Queue[tuple[float, ...]] = context.Queue()  # type: ignore[assignment]
        process = context.Process(target=measure, args=(kind, options.steps, options.updates, answers))
        process.start()
        data, memory, rate, parameters = answers.get()
        process.join()
        numbers = kind if isinstance(kind, int) else sum(int(np.prod(shape)) for shape in kind.values())
        row = {
            "observation": name,
            "data, MB": data / 1e6,
            "as float32, MB": 4 * options.steps * numbers / 1e6,
            "RAM of all, MB": memory / 1e6,
            "updates/s": rate,
            "parameters": parameters,
        }
        rows.append(row)
    title = f"{options.steps:,} steps, minGRU, batch {BATCH}, context {CONTEXT}, one thread"
    report(title, rows, options.output)


if __name__ == "__main__":
    main()
