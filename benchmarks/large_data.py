"""Updates per second from a dataset that is larger than the memory, against one that is resident.

    python -m benchmarks.large_data --gigabytes 20 [--folder FOLDER]          run from the root of the repository

Writes a random file with D4RL's fields of that size into a folder that is removed afterwards (it needs room for twice
the size), and converts it. Then four processes with the same agent take turns in making updates: one from the
memory-mapped arrays as they are; one of these that does not have the next batch fetched; one of these that also does
not tell the kernel that reads are random, so that it reads ahead; and one with the first ``--resident`` gigabytes in
memory. At the start no page of the mapped files is in memory, and each process draws other windows, so that nearly all
are read from the disk. Peaks of anonymous memory (RssAnon of /proc: what a page cache could not give back) are of the
process, PyTorch included.
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

MAPPED, NO_FETCH, READ_AHEAD, RESIDENT = "mapped", "mapped, not fetched", "mapped, read ahead", "resident"
LENGTH = 1000  # steps of an episode


def write_file(path: Path, options: argparse.Namespace) -> None:
    """Random float32 values, as D4RL's files hold them, without compression."""
    widths = {"observations": options.observation_dim, "actions": options.action_dim, "rewards": 1}
    n = int(options.gigabytes * 1e9 / (4 * sum(widths.values()))) // LENGTH * LENGTH
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, width in widths.items():
            item = file.create_dataset(name, (n, width) if width > 1 else (n,), "f4")
            for start in range(0, n, 100_000):
                item[start : start + 100_000] = rng.random(item[start : start + 100_000].shape, np.float32)
        file["terminals"] = np.arange(n) % LENGTH == LENGTH - 1


@contextmanager
def peak_of_anonymous_memory() -> Iterator[list[float]]:
    """Its largest value in GB, looked at every 50 ms."""
    peak, done = [0.0], threading.Event()

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
    with peak_of_anonymous_memory() as peak:
        began = time.perf_counter()
        load_large(path)
        converted = time.perf_counter()
        load_large(path)
        connection.send((converted - began, time.perf_counter() - converted, peak[0]))


def load_large(path: Path) -> Episodes:
    """Mapped whatever the memory of this machine is, and a file as small as one likes."""
    unroll.envs.datasets.cache.is_large = lambda size: True
    return load_episodes(str(path))


def train(connection: Connection, path: Path, row: str, seed: int, options: argparse.Namespace) -> None:
    """Make as many updates as it is told, again and again, and say how long they took; 0 is the end."""
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
            seed=seed,
            policy_kwargs=sizes,
        )
        agent._total_timesteps = 10**9
        sampler = agent.sampler
        assert isinstance(sampler, HostSampler) == (row != RESIDENT)
        if isinstance(sampler, HostSampler) and row != MAPPED:
            for column in (sampler.observations, sampler.actions):
                column.fetch = lambda *arguments: None  # type: ignore[method-assign]
                if row == READ_AHEAD:
                    column._advise(mmap.MADV_NORMAL)
        connection.send(time.perf_counter() - began)
        while updates := connection.recv():
            began = time.perf_counter()
            for _ in range(updates):
                agent.update()
            if agent.device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - began)
        connection.send(peak[0])


def resident(episodes: Episodes, gigabytes: float) -> Episodes:
    """The first episodes, in memory."""
    n = min(len(episodes), max(1, int(len(episodes) * gigabytes * 1e9 / _bytes(episodes))))
    rows = slice(0, int(episodes.lengths[:n].sum()))
    return dataclasses.replace(
        episodes,
        **{name: np.array(getattr(episodes, name)[rows]) for name in ("observations", "actions", "rewards")},
        **{name: getattr(episodes, name)[:n] for name in ("lengths", "terminated", "truncated")},
        known_statistics=None,
    )


def _bytes(episodes: Episodes) -> int:
    return episodes.observations.nbytes + episodes.actions.nbytes + episodes.rewards.nbytes


def forget(folder: Path) -> None:
    """Have the kernel drop the pages of these files."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *arguments))
    process.start()
    return process, here


def compare(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    children = {}
    for seed, row in enumerate((MAPPED, NO_FETCH, READ_AHEAD, RESIDENT)):
        process, connection = start(train, path, row, seed, options)
        children[row] = process, connection, connection.recv()  # one after the other, the seconds it took to start
        forget(path.parent)
    times: dict[str, list[float]] = {row: [] for row in children}
    for _ in range(options.rounds + 1):
        for row, (_, connection, _) in children.items():
            connection.send(options.updates)
            times[row].append(connection.recv() / options.updates)
    rows = []
    of = {row: statistics.median(seconds[1:]) for row, seconds in times.items()}  # the first round warms
    for row, (process, connection, seconds) in children.items():
        connection.send(0)
        rows.append(
            {
                "arrays": row,
                "updates/s": 1 / of[row],
                "to resident": of[row] / of[RESIDENT],
                "of each round": " ".join(f"{1 / s:.2f}" for s in times[row][1:]),
                "anonymous memory, GB": connection.recv(),
                "start, s": seconds,
            }
        )
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
        process, connection = start(convert, path)
        converted, again, peak = connection.recv()
        process.join()
        memory = f"at most {peak:.2f} GB of anonymous memory"
        more = {
            "file": f"{path.stat().st_size / 1e9:.2f} GB, written in {written:.0f} s",
            "conversion": f"{converted:.0f} s, with {memory}; opened again in {again:.2f} s",
        }
        rows = compare(path, options)
    report("Large data: " + "; ".join(f"{name} {value}" for name, value in more.items()), rows, options.output, **more)


if __name__ == "__main__":
    main()
