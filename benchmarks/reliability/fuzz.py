"""Random mutations of what the loaders read: python -m benchmarks.reliability fuzz [--minutes 10] [--seed 0]

HDF5 recordings (ours and others'), Minari datasets, entries of the cache, checkpoints and configs are mutated, as bytes
and as what they hold (arrays, JSON, under checksums made anew), and loaded in children with limits of time and memory.
Loading may refuse, by its own error of one line, or accept what is still whole: its arrays are then finite and fit
each other. Anything else is unhandled: another exception, a warning, a crash, a hang, an explosion. These are printed
with their seeds, and what was read is kept. The exit code is 1 where there was one.

The limit of memory is 5 GiB: where the length of a text attribute is damaged, HDF5 itself takes up to 4 GiB for it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import yaml

from benchmarks.reliability import forks
from benchmarks.reliability.malformed import warm_up
from benchmarks.reliability.mutations import mutate_arrays, mutate_bytes, mutate_json, mutate_tree
from benchmarks.reliability.victims import MINARI, MINARI_DATA, build, checkpoint_of, rewrite
from unroll.agents import DecisionAgent, schemas
from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS, read_checkpoint
from unroll.configs import load_config, plain_config
from unroll.envs import Episodes, load_episodes
from unroll.envs.datasets import cache
from unroll.envs.datasets.doctor import problems
from unroll.errors import CheckpointError, DatasetError

BATCH = 25  # inputs that a child reads
SECONDS = 60  # that it may take
MEMORY = 5 << 30  # bytes that it may use


def check_whole(episodes: Episodes) -> None:
    """Raise AssertionError unless an agent could learn from them."""
    assert not problems(episodes)
    for name in ("observations", "actions", "rewards"):
        values = getattr(episodes, name)
        assert np.isfinite(values).all()
        assert len(values) == episodes.lengths.sum() > 0
    assert episodes.observations.ndim == 2
    assert np.isfinite(episodes.returns_to_go).all()


def edit(rng: Random, path: Path) -> None:
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def hdf5_bytes(rng: Random, folder: Path) -> None:
    path = folder / rng.choice(("own.hdf5", "foreign.hdf5"))
    edit(rng, path)
    check_whole(load_episodes(str(path)))


def hdf5_arrays(rng: Random, folder: Path) -> None:
    path = folder / rng.choice(("own.hdf5", "foreign.hdf5"))
    mutate_arrays(rng, path)
    check_whole(load_episodes(str(path)))


def minari_bytes(rng: Random, folder: Path) -> None:
    edit(rng, folder / MINARI_DATA / rng.choice(("main_data.hdf5", "metadata.json")))
    check_whole(load_episodes(f"minari:{MINARI}"))


def minari_arrays(rng: Random, folder: Path) -> None:
    mutate_arrays(rng, folder / MINARI_DATA / "main_data.hdf5")
    check_whole(load_episodes(f"minari:{MINARI}"))


def minari_metadata(rng: Random, folder: Path) -> None:
    mutate_json(rng, folder / MINARI_DATA / "metadata.json")
    check_whole(load_episodes(f"minari:{MINARI}"))


def cache_entry(rng: Random, folder: Path) -> None:
    """Read by itself: whatever is wrong with an entry, it is made anew. Half of them under checksums that agree."""
    entry = folder / "entry"
    path = rng.choice(sorted(entry.iterdir()))
    edit(rng, path)
    if rng.random() < 0.5:
        meta = json.loads((folder / "meta.json").read_text())
        if path.name == "meta.json":
            meta = mutate_tree(rng, meta)
        else:
            values = np.load(folder / "whole" / path.name)
            with np.errstate(all="ignore"):
                values = values.astype(rng.choice(("f4", "f8", "i8", "?"))).repeat(rng.choice((1, 1, 2)), axis=0)
            np.save(path, values)
            meta["checksums"][path.stem] = cache._checksum(values)
        if isinstance(meta, dict):
            meta["checksum"] = cache._meta_checksum({key: value for key, value in meta.items() if key != "checksum"})
        (entry / "meta.json").write_text(json.dumps(meta))
    try:
        episodes = cache._read(entry)
    except Exception as error:
        raise DatasetError(f"an entry that is made anew: {' '.join(str(error).split())}") from None
    if found := problems(episodes):  # as load_episodes does with all that it reads
        raise DatasetError(found[0])
    check_whole(episodes)


def checkpoint_bytes(rng: Random, folder: Path) -> None:
    """Of any file; half of them under a manifest that agrees."""
    checkpoint = checkpoint_of(folder / "decision_run")
    edit(rng, checkpoint / rng.choice((TENSORS, STATE, MANIFEST)))
    if rng.random() < 0.5:
        rewrite(checkpoint)
    read_checkpoint(checkpoint)
    check_finite(DecisionAgent.load(checkpoint, device="cpu"))


def checkpoint_state(rng: Random, folder: Path) -> None:
    checkpoint = checkpoint_of(folder / "decision_run")
    rewrite(checkpoint, state=mutate_tree(rng, json.loads((checkpoint / STATE).read_text())))
    check_finite(DecisionAgent.load(checkpoint, device="cpu"))


def check_finite(agent: DecisionAgent) -> None:
    """Raise AssertionError unless all that it loaded is finite."""
    moments = [value for slots in agent.optimizer.state.values() for value in slots.values()]
    assert all(bool(tensor.isfinite().all()) for tensor in [*agent.policy.state_dict().values(), *moments])


def config_bytes(rng: Random, folder: Path) -> None:
    path = folder / rng.choice(("decision.yaml", "ppo.yaml"))
    edit(rng, path)
    _load_config(path)


def config_values(rng: Random, folder: Path) -> None:
    path = folder / rng.choice(("decision.yaml", "ppo.yaml"))
    path.write_text(yaml.safe_dump(mutate_tree(rng, yaml.safe_load(path.read_text())), allow_unicode=True))
    _load_config(path)


class Refused(Exception):
    """As a command refuses: one line and exit code 2."""


def _load_config(path: Path) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = load_config(["--config", str(path)], schemas())
    except SystemExit as stopped:
        if stopped.code == 2:
            raise Refused(said.getvalue().strip()) from None
        raise
    path.write_text(yaml.safe_dump(plain_config(config)))
    assert load_config(["--config", str(path)], schemas()) == config


TARGETS: dict[str, tuple[Callable[[Random, Path], None], tuple[str, ...]]] = {
    "HDF5, bytes": (hdf5_bytes, ("own.hdf5", "foreign.hdf5")),
    "HDF5, arrays": (hdf5_arrays, ("own.hdf5", "foreign.hdf5")),
    "Minari, bytes": (minari_bytes, ("minari_datasets_path",)),
    "Minari, arrays": (minari_arrays, ("minari_datasets_path",)),
    "Minari, metadata": (minari_metadata, ("minari_datasets_path",)),
    "cache entry": (cache_entry, ("entry", "whole", "meta.json")),
    "checkpoint, bytes": (checkpoint_bytes, ("decision_run",)),
    "checkpoint, state": (checkpoint_state, ("decision_run",)),
    "config, bytes": (config_bytes, ("decision.yaml", "ppo.yaml")),
    "config, values": (config_values, ("decision.yaml", "ppo.yaml")),
}


def read_one(target: str, seed: str, healthy: Path, folder: Path) -> str:
    """What came of one input: refused, accepted, or what is wrong."""
    read, needed = TARGETS[target]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in needed:
        source = healthy / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari_datasets_path")
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        try:
            read(Random(seed), folder)
            outcome = "accepted"
        except (DatasetError, CheckpointError, Refused) as error:
            outcome = "refused" if "\n" not in str(error) else f"several lines: {error}"
        except BaseException:
            outcome = traceback.format_exc()
    return f"warning: {noise[0].message} ({noise[0].filename}:{noise[0].lineno})" if noise else outcome


def read_batch(target: str, seeds: list[str], healthy: Path, folder: Path, keep: Path) -> None:
    """In a child: a line in ``log`` before and after each input."""
    with (folder / "log").open("w") as log:
        for seed in seeds:
            log.write(json.dumps([seed, "died"]) + "\n")
            log.flush()
            outcome = read_one(target, seed, healthy, folder / "input")
            if outcome not in ("refused", "accepted"):
                shutil.copytree(folder / "input", keep / seed.replace("/", "_"), dirs_exist_ok=True)
            log.write(json.dumps([seed, outcome]) + "\n")
            log.flush()


def run_batch(target: str, seeds: list[str], healthy: Path, folder: Path, keep: Path) -> dict[str, str]:
    """Outcome by seed. A child that dies leaves the rest of its seeds unread, and the input that it died of."""
    folder.mkdir()
    ended = forks.run(lambda: read_batch(target, seeds, healthy, folder, keep), folder, SECONDS)
    outcomes = dict(json.loads(line) for line in (folder / "log").read_text().splitlines())
    last = list(outcomes)[-1]
    if outcomes[last] == "died":
        outcomes[last] = "hung" if ended.late else f"died with {ended.code}: {ended.stderr[-500:]}"
        shutil.copytree(folder / "input", keep / last.replace("/", "_"), dirs_exist_ok=True)
    elif ended.grown > MEMORY:
        outcomes[last] = f"one from {seeds[0]} on used {ended.grown >> 20} MiB"
    shutil.rmtree(folder)
    return outcomes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="fuzz-failures", help="folder for inputs that were not handled")
    options = parser.parse_args(arguments)
    keep, counts = Path(options.keep).absolute(), collections.defaultdict(collections.Counter)
    failures: list[str] = []
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        healthy = forks.made(top, prepare)
        end, batch = time.monotonic() + 60 * options.minutes, 0
        while time.monotonic() < end:
            target = list(TARGETS)[batch % len(TARGETS)]
            seeds = [f"{options.seed}/{batch}/{i}" for i in range(BATCH)]
            for seed, outcome in run_batch(target, seeds, healthy, top / str(batch), keep).items():
                known = outcome in ("refused", "accepted")
                counts[target][outcome if known else "unhandled"] += 1
                if not known:
                    failures.append(f"{target}, seed {seed}: {outcome}")
                    print(failures[-1], flush=True)
            batch += 1
    columns = ("refused", "accepted", "unhandled")
    print("| input | read | refused | accepted, whole | unhandled |\n|---|---|---|---|---|")
    for target, found in counts.items():
        print(f"| {target} | {found.total():,} | {' | '.join(f'{found[column]:,}' for column in columns)} |")
    total = sum(counts.values(), collections.Counter())
    print(f"| **all** | {total.total():,} | {' | '.join(f'{total[column]:,}' for column in columns)} |")
    print(f"\nSeed {options.seed}, {options.minutes:g} minutes.", f"Kept in {keep}." if failures else "")
    return int(bool(failures))


def prepare(folder: Path) -> int:
    """The victims, and an entry of the cache."""
    code = build(folder)
    episodes = load_episodes("own.hdf5")
    cache._write(episodes, folder / "entry")
    shutil.copytree(folder / "entry", folder / "whole")
    shutil.copy(folder / "entry" / "meta.json", folder / "meta.json")
    return code
