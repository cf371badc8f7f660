"""Mutate what the loaders read at random: python -m tests.reliability fuzz [--minutes 10] [--seed 0]

HDF5 recordings (ours and others'), Minari datasets, entries of the cache, checkpoints and configs are mutated, as bytes
and as what they hold (arrays, JSON, under checksums made anew), and each is loaded in a child with little time and
memory. Loading may refuse, by its own error of one line, or accept what is still whole: its arrays are then finite and
fit each other. Anything else is unhandled: another exception, a warning, a crash, a hang, an explosion. These are
printed, and what was read is kept. The exit code is 1 where there was one.

The limit of memory is 5 GiB: where the length of a text attribute is damaged, HDF5 itself takes up to 4 GiB for it.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from tests.reliability import victims
from tests.reliability.cases import ACCEPTED, REFUSED, Case, attempt
from tests.reliability.edits import mutate_arrays, mutate_bytes, mutate_tree, read_tree, sign, write_tree
from unroll.agents import DecisionAgent, schemas
from unroll.configs import load_config, plain_config
from unroll.envs import load_episodes
from unroll.envs.datasets import cache
from unroll.envs.datasets.doctor import problems
from unroll.envs.datasets.episodes import Episodes
from unroll.errors import DatasetError, UserError, one_line
from unroll.tables import markdown_table

MOST_BYTES = 5 << 30


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default="fuzz-failures", help="folder for inputs that were not handled")
    options = parser.parse_args(arguments)
    counts = {target: [0, 0, 0] for target in TARGETS}  # refused, accepted, unhandled
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        healthy = victims.make(top)
        end = time.monotonic() + 60 * options.minutes
        number = 0
        while time.monotonic() < end:
            target = list(TARGETS)[number % len(TARGETS)]
            paths, mutate, load = TARGETS[target]
            rng = Random(f"{options.seed}/{number}")
            case = Case(rng.choice(paths), target, partial(mutate, rng), ("",))
            folder = top / str(number)
            code, faults = attempt(case, partial(read, load, case.path), healthy, folder, MOST_BYTES)
            if faults:
                counts[target][2] += 1
                kept = options.keep.absolute() / f"{options.seed}_{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"{target}, {case.path}, kept in {kept}: {faults}", flush=True)
            else:
                counts[target][code == ACCEPTED] += 1
            shutil.rmtree(folder)
            number += 1

    counts["**all**"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[target, f"{sum(count):,}", *[f"{n:,}" for n in count]] for target, count in counts.items()]
    print(markdown_table(["input", "read", "refused", "accepted, whole", "unhandled"], rows))
    print(f"\nSeed {options.seed}, {options.minutes:g} minutes.")
    return int(counts["**all**"][2] > 0)


def read(load: Callable[[Path], None], path: str, _: str) -> int:
    """Load a file as a command does."""
    warnings.simplefilter("always")
    logging.getLogger("unroll.envs.datasets").setLevel(logging.ERROR)  # what is told of whole data is no fault
    try:
        load(Path(path))
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    return ACCEPTED


def mutate_checkpoint(rng: Random, path: Path) -> None:
    """Mutate bytes; half of them under a manifest that agrees."""
    mutate_bytes(rng, path)
    if rng.random() < 0.5:
        sign(path.parent)


def mutate_entry(rng: Random, path: Path) -> None:
    """Mutate bytes, or what meta.json says, under a checksum that agrees."""
    if path.name != "meta.json" or rng.random() < 0.3:
        mutate_bytes(rng, path)
        return
    mutate_tree(rng, path)
    meta = read_tree(path)
    meta.pop("checksum", None)
    write_tree(path, meta | {"checksum": cache._meta_checksum(meta)})


def load_dataset(path: Path) -> None:
    """Load a recording or a Minari dataset."""
    check_whole(load_episodes(victims.reading(str(path))[1]))


def load_entry(path: Path) -> None:
    """Read an entry of the cache. Whatever is wrong with one, it is made anew."""
    try:
        episodes = cache._read(path.parent)
    except Exception as error:
        raise DatasetError(f"an entry that is made anew: {one_line(error)}") from None
    found = problems(episodes)  # which load_episodes asks for too
    if found:
        raise DatasetError(found[0])
    check_whole(episodes)


def check_whole(episodes: Episodes) -> None:
    """Raise AssertionError unless an agent could learn from these episodes."""
    assert not problems(episodes)
    for values in (episodes.observations, episodes.actions, episodes.rewards):
        assert np.isfinite(values).all()
        assert len(values) == episodes.lengths.sum() > 0
    assert episodes.observations.ndim == 2
    assert np.isfinite(episodes.returns_to_go).all()


def load_agent(path: Path) -> None:
    """Load a decision agent, whose weights and moments must be finite."""
    agent = DecisionAgent.load(path.parent, device="cpu")
    tensors = list(agent.policy.state_dict().values())
    for slots in agent.optimizer.state.values():
        tensors.extend(slots.values())
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def load_settings(path: Path) -> None:
    """Read a config, which must be the same once it is written and read again."""
    config = load_config(["--config", str(path)], schemas())
    write_tree(path, plain_config(config))
    assert load_config(["--config", str(path)], schemas()) == config


CHECKPOINT = (victims.TENSOR_FILES[0], victims.STATES[0], victims.MANIFESTS[0])
TARGETS: dict[str, tuple[tuple[str, ...], Callable[[Random, Path], None], Callable[[Path], None]]] = {
    "HDF5, bytes": (victims.RECORDINGS, mutate_bytes, load_dataset),
    "HDF5, arrays": (victims.RECORDINGS, mutate_arrays, load_dataset),
    "Minari, bytes": ((victims.MINARI_DATA, victims.METADATA), mutate_bytes, load_dataset),
    "Minari, arrays": ((victims.MINARI_DATA,), mutate_arrays, load_dataset),
    "Minari, metadata": ((victims.METADATA,), mutate_tree, load_dataset),
    "cache entry": (victims.CACHE, mutate_entry, load_entry),
    "checkpoint, bytes": (CHECKPOINT, mutate_checkpoint, load_agent),
    "checkpoint, state": ((victims.DECISION_STATE,), mutate_tree, load_agent),
    "config, bytes": (victims.CONFIGS, mutate_bytes, load_settings),
    "config, values": (victims.CONFIGS, mutate_tree, load_settings),
}
