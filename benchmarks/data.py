"""Speed of drawing batches of sequences, against a loop over samples, and of loading a dataset twice.

    python -m benchmarks.data [--dataset SOURCE]          run from the root of the repository

The loop does what the original Decision Transformer's ``get_batch`` does (Chen et al. 2021): episodes are lists of
numpy arrays, and each sample is cut, padded and given its returns-to-go by itself. It is timed with the original's sum
of rewards, a Python loop from the episode's end, and with ``np.cumsum``. All give the same fields. Without
``--dataset`` the data are random, of Hopper's shape (100,000 steps in episodes of 20 to 1,000 steps).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import write_hdf5, write_minari
from unroll.envs.datasets.sampling import SequenceSampler
from unroll.envs.datasets.sources import read_episodes


def random_episodes(lengths: np.ndarray, observation_dim: int = 11, action_dim: int = 3) -> Episodes:
    """Make random episodes of these lengths."""
    rng = np.random.default_rng(0)
    n = int(lengths.sum())
    return Episodes(
        observations=rng.normal(size=(n, observation_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        lengths=lengths,
        terminated=np.ones(len(lengths), bool),
        truncated=np.zeros(len(lengths), bool),
        final_observations=rng.normal(size=(len(lengths), observation_dim)).astype(np.float32),
        action_space=gym.spaces.Box(-1, 1, (action_dim,), np.float32),
        name="random, of Hopper's shape",
    )


class LoopSampler:
    """A sampler that makes one sample after the other, with the fields and the padding of ``SequenceSampler``."""

    def __init__(self, episodes: Episodes, context: int, sums: Callable[[np.ndarray], np.ndarray]):
        self.context = context
        self.sums = sums
        self.share = episodes.lengths / episodes.n_steps
        actions = episodes.actions.reshape(episodes.n_steps, -1).astype(np.float32)

        # A list of (observations, actions, rewards), as the original has it.
        cuts = episodes.starts[1:]
        columns = [np.split(values, cuts) for values in (episodes.observations, actions, episodes.rewards)]
        self.episodes = list(zip(*columns, strict=True))

    def sample(self, batch_size: int, step: int) -> dict[str, torch.Tensor]:
        """Draw batch ``step``: other samples than those of ``SequenceSampler``, of the same distribution."""
        random = np.random.default_rng(step)
        batch: dict[str, list[np.ndarray]] = {}
        # An episode is chosen by its share of the steps, then a start within it.
        for e in random.choice(len(self.episodes), size=batch_size, p=self.share):
            observations, actions, rewards = self.episodes[e]
            start = 0
            if len(rewards) > self.context:
                start = int(random.integers(len(rewards)))
            end = min(start + self.context, len(rewards))

            # Before an episode's first step the previous action is zero.
            before = np.zeros_like(actions[:1])
            if start:
                before = actions[start - 1 : start]
            sample = {
                "observation": observations[start:end],
                "action": actions[start:end],
                "previous_action": np.concatenate([before, actions[start : end - 1]]),
                "return_to_go": self.sums(rewards[start:])[: end - start],
                "timestep": np.arange(start, end),
                "mask": np.ones(end - start, bool),
            }

            # Short samples are padded at their end.
            for key, values in sample.items():
                padding = np.zeros((self.context - len(values), *values.shape[1:]), values.dtype)
                batch.setdefault(key, []).append(np.concatenate([values, padding]))
        return {key: torch.from_numpy(np.stack(values)) for key, values in batch.items()}


def looped_sums(rewards: np.ndarray) -> np.ndarray:
    """Sum rewards [T] to returns-to-go [T], one step after the other from the end."""
    sums = np.zeros_like(rewards)
    sums[-1] = rewards[-1]
    for t in reversed(range(len(rewards) - 1)):
        sums[t] = rewards[t] + sums[t + 1]
    return sums


def numpy_sums(rewards: np.ndarray) -> np.ndarray:
    """Sum rewards [T] to returns-to-go [T] at once."""
    return np.cumsum(rewards[::-1])[::-1]


def median_time(run: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """Measure the seconds of ``run(*arguments, i)``, as the median after one run that is not counted."""
    times = []
    for i in range(repeats + 1):
        began = time.perf_counter()
        run(*arguments, i)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def compare_samplers(episodes: Episodes, context: int, batch_sizes: list[int]) -> Table:
    """Time both loops and our sampler at each batch size."""
    table = Table(title=f"{episodes.n_steps} steps, {len(episodes)} episodes, K = {context}")
    for column in ("batch", "loop", "with cumsum", "sampler", "ratio", "with cumsum"):
        table.add_column(column, justify="right")
    loops = [LoopSampler(episodes, context, sums) for sums in (looped_sums, numpy_sums)]
    sampler = SequenceSampler(episodes, context)
    for batch_size in batch_sizes:
        slow = [median_time(loop.sample, batch_size, repeats=20) for loop in loops]
        fast = median_time(sampler.sample, batch_size, 0, repeats=300)
        times = [f"{seconds * 1e3:.3f} ms" for seconds in (*slow, fast)]
        table.add_row(f"{batch_size}", *times, *(f"{seconds / fast:.0f}×" for seconds in slow))
    return table


def compare_loads(source: str | None) -> Table:
    """Time the first and the second load of a dataset, from an empty cache: of ``source``, or of random ones."""
    table = Table(title="loading")
    for column in ("source", "episodes", "steps", "first", "second"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        variables = {"UNROLL_CACHE": str(cache)}
        if source:
            sources = [source]
        else:
            sources = write_sources(folder)
            variables["MINARI_DATASETS_PATH"] = f"{folder}/minari"

        with mock.patch.dict("os.environ", variables):
            read_episodes(sources[0])  # so that imports are not timed
            for name in sources:
                clear(cache)
                times = []
                for _ in range(2):
                    began = time.perf_counter()
                    episodes = read_episodes(name)
                    times.append(f"{time.perf_counter() - began:.3f} s")
                label = name.replace(f"{folder}/", "")
                table.add_row(label, f"{len(episodes)}", f"{episodes.n_steps}", *times)
    return table


def write_sources(folder: str) -> list[str]:
    """Write random datasets, with long and with short episodes, and return their names."""
    long = random_episodes(np.full(100, 1000))
    short = random_episodes(np.full(4500, 22))
    write_hdf5(short, f"{folder}/short.hdf5")

    keys = ("author", "author_email", "code_permalink", "algorithm_name", "description")
    about = dict.fromkeys(keys, "benchmark")
    with mock.patch.dict("os.environ", {"MINARI_DATASETS_PATH": f"{folder}/minari"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_minari(long, "benchmark/long-v0", **about)
        write_minari(short, "benchmark/short-v0", **about)
    return [f"{folder}/short.hdf5", "minari:benchmark/long-v0", "minari:benchmark/short-v0"]


def clear(cache: Path) -> None:
    """Empty the cache of converted datasets."""
    for file in cache.glob("*/*"):
        file.unlink()
    for entry in cache.glob("*"):
        entry.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", help="any source that envs.load_episodes takes")
    parser.add_argument("--context", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.dataset:
        episodes = read_episodes(options.dataset)
    else:
        lengths = np.random.default_rng(0).integers(20, 1001, size=196)
        episodes = random_episodes(lengths)
    console = Console()
    console.print(compare_samplers(episodes, options.context, [64, 256, 4096]))
    console.print(compare_loads(options.dataset))


if __name__ == "__main__":
    main()
