"""Updates per second from a dataset that is larger than the RAM, against one that is resident.

    python -m benchmarks.large_data --gigabytes 20 [--folder FOLDER]          run from the root of the repository

Writes a random file of that size with D4RL's fields into a folder that is removed afterwards, and converts it. The
folder needs room for twice the size. Then four processes with the same agent take turns in making updates:

* from the memory-mapped arrays as they are;
* the same, but the next batch is not fetched ahead;
* the same, but the kernel is not told either that reads are random, so that it reads ahead;
* with the first ``--resident`` gigabytes in RAM.

At the start no page of the mapped files is in RAM, and each process draws other windows, so that nearly all are read
from the disk. Peaks of anonymous memory (RssAnon of /proc, which no page cache can give back) are those of the process,
PyTorch included.
"""

from __future__ import annotations

import argparse
import dataclasses
import mmap
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import unroll.envs.datasets.cache
from benchmarks.timing import report
from unroll.agents import DecisionAgent
from unroll.envs import Episodes, load_episodes
from unroll.envs.datasets.sampling import HostSampler

MAPPED = "mapped"
NO_FETCH = "mapped, not fetched"
READ_AHEAD = "mapped, read ahead"
RESIDENT = "resident"
LENGTH = 1000  # steps of an episode


def write_file(path: Path, options: argparse.Namespace) -> None:
    """Write random float32 values as D4RL's files hold them, without compression."""
    # As many whole episodes as fit into the size.
    widths = {"observations": options.observation_dim, "actions": options.action_dim, "rewards": 1}
    n = int(options.gigabytes * 1e9 / (4 * sum(widths.values()))) // LENGTH * LENGTH
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, width in widths.items():
            shape = (n,) if width == 1 else (n, width)
            item = file.create_dataset(name, shape, "f4")
            for start in range(0, n, 100_000):
                item[start : start + 100_000] = rng.random(item[start : start + 100_000].shape, np.float32)
        file["terminals"] = np.arange(n) % LENGTH == LENGTH - 1


@contextmanager
def peak_of_anonymous_memory() -> Iterator[list[float]]:
    """Give a list with the largest value in GB so far, looked at every 50 ms."""
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            with open("/proc/self/status") as file:
                kilobytes = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
            peak[0] = max(peak[0], kilobytes * 1024 / 1e9)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    done.set()
    thread.join()


def convert(connection: Connection, path: Path) -> None:
    """Convert the file and open it again; send the seconds of both, and the peak of anonymous memory."""
    with peak_of_anonymous_memory() as peak:
        began = time.perf_counter()
        load_large(path)
        converted = time.perf_counter()
        load_large(path)
        connection.send((converted - began, time.perf_counter() - converted, peak[0]))


def load_large(path: Path) -> Episodes:
    """Load a file of any size as one that is larger than the RAM."""
    # The cache maps what is large.
    unroll.envs.datasets.cache.is_large = lambda size: True
    return load_episodes(str(path))


def train(connection: Connection, path: Path, row: str, seed: int, options: argparse.Namespace) -> None:
    """Receive numbers of updates, make them, and send the seconds that they took; 0 is the end."""
    torch.set_num_threads(1)
    with peak_of_anonymous_memory() as peak:
        began = time.perf_counter()
        episodes = load_large(path)
        if row == RESIDENT:
            episodes = resident(episodes, options.resident)

        sizes = dict(backbone=options.backbone, d_model=options.d_model, n_layers=options.layers)
        agent = DecisionAgent(
            episodes,
            context=options.context,
            batch_size=options.batch,
            device=options.device,
            seed=seed,  # so that every process draws other windows
            policy_kwargs=sizes,
        )
        agent._total_timesteps = 10**9
        slow_down(agent, row)
        connection.send(time.perf_counter() - began)
        while True:
            updates = connection.recv()
            if updates == 0:
                break
            began = time.perf_counter()
            for _ in range(updates):
                agent.update()
            if agent.device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - began)
        connection.send(peak[0])


def slow_down(agent: DecisionAgent, row: str) -> None:
    """Take from the sampler what the row does without."""
    sampler = agent.sampler
    assert isinstance(sampler, HostSampler) == (row != RESIDENT)
    if not isinstance(sampler, HostSampler) or row == MAPPED:
        return
    for column in (sampler.observations, sampler.actions):
        column.fetch = lambda *arguments: None  # type: ignore[method-assign]
        if row == READ_AHEAD:
            column._advise(mmap.MADV_NORMAL)


def resident(episodes: Episodes, gigabytes: float) -> Episodes:
    """Return the first episodes, in RAM."""
    fitting = int(len(episodes) * gigabytes * 1e9 / _bytes(episodes))
    n = min(len(episodes), max(1, fitting))
    steps = int(episodes.lengths[:n].sum())
    return dataclasses.replace(
        episodes,
        observations=np.array(episodes.observations[:steps]),
        actions=np.array(episodes.actions[:steps]),
        rewards=np.array(episodes.rewards[:steps]),
        lengths=episodes.lengths[:n],
        terminated=episodes.terminated[:n],
        truncated=episodes.truncated[:n],
        known_statistics=None,
    )


def _bytes(episodes: Episodes) -> int:
    return episodes.observations.nbytes + episodes.actions.nbytes + episodes.rewards.nbytes


def forget(folder: Path) -> None:
    """Have the kernel drop the pages of these files."""
    os.sync()  # a page that is not written yet cannot be dropped
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    """Start a process; return it and our end of its connection."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments))
    process.start()
    return process, here


def compare(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the processes take turns; make the rows of the table."""
    # They start one after the other, and each says how long it took.
    children = {}
    for seed, row in enumerate((MAPPED, NO_FETCH, READ_AHEAD, RESIDENT)):
        process, connection = start(train, path, row, seed, options)
        children[row] = (process, connection, connection.recv())
        forget(path.parent)

    times: dict[str, list[float]] = {row: [] for row in children}
    for _ in range(options.rounds + 1):
        for row, (_, connection, _) in children.items():
            connection.send(options.updates)
            times[row].append(connection.recv() / options.updates)

    # The first round warms.
    counted = {row: seconds[1:] for row, seconds in times.items()}
    medians = {row: statistics.median(seconds) for row, seconds in counted.items()}
    rows = []
    for row, (process, connection, seconds_to_start) in children.items():
        connection.send(0)
        cells = {
            "arrays": row,
            "updates/s": 1 / medians[row],
            "to resident": medians[row] / medians[RESIDENT],
            "of each round": " ".join(f"{1 / seconds:.2f}" for seconds in counted[row]),
            "anonymous memory, GB": connection.recv(),
            "start, s": seconds_to_start,
        }
        rows.append(cells)
        process.join()
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_data", description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--resident", type=float, default=2, help="gigabytes of it for the resident row")
    parser.add_argument("--folder", help="where there is room for twice the size; default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each row, whose median counts")
    parser.add_argument("--updates", type=int, default=20, help="updates of a timing")
    parser.add_argument("--backbone", default="mingru")
    parser.add_argument("--device", default="cpu")
    sizes = (("batch", 64), ("context", 20), ("d_model", 128), ("layers", 3))
    for name, size in (*sizes, ("observation_dim", 45), ("action_dim", 24)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["UNROLL_CACHE"] = f"{folder}/cache"
        path = Path(folder) / "random.hdf5"
        began = time.perf_counter()
        write_file(path, options)
        written = time.perf_counter() - began
        forget(path.parent)

        # A process of its own converts the file, so that its peak is that of the conversion.
        process, connection = start(convert, path)
        converted, again, peak = connection.recv()
        process.join()
        written_size = f"{path.stat().st_size / 1e9:.2f} GB, written in {written:.0f} s"
        peak_words = f"at most {peak:.2f} GB of anonymous memory"
        conversion = f"{converted:.0f} s, with {peak_words}; opened again in {again:.2f} s"
        rows = compare(path, options)
    title = f"Large data: file {written_size}; conversion {conversion}"
    report(title, rows, options.output, file=written_size, conversion=conversion)


if __name__ == "__main__":
    main()
