"""Converted datasets kept as flat .npy files, so that a set of thousands of short episodes is converted only once.

``$UNROLL_CACHE`` or ``~/.cache/unroll`` holds one folder per dataset: an array per field and ``meta.json``. Its name
contains a hash of the source files (path, size, time of change) and of what else decides the result. An entry is read
without pickle, and checked against the checksums in its ``meta.json``; what does not agree is made again.

A set that is large beside the memory (envs/stores.py) is written there while it is read, and its arrays are
memory-mapped. Of an array above 1 GiB the checksum covers type, shape and 1,024 blocks of 64 KiB spread over it, 64 MiB
in all: damage in between is not found. Nor are its values judged again at each start: what the doctor and the policy
want to know of all of them is found once, after the conversion, and kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from filelock import FileLock

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.statistics import Scan, scan
from unroll.envs.datasets.store import DiskStore, Store, is_large, refusals
from unroll.errors import one_line

log = logging.getLogger(__name__)

FORMAT = 3
ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations")
TYPES = {
    "observations": (np.float32, 2),
    "rewards": (np.float32, 1),
    "lengths": (np.int64, 1),
    "terminated": (np.bool_, 1),
    "truncated": (np.bool_, 1),
    "final_observations": (np.float32, 2),
}
MAPPED = ("observations", "actions", "rewards", "final_observations")
SAMPLED_ABOVE, SAMPLES, PART = 1 << 30, 1024, 1 << 16  # bytes, parts, bytes
TEXTS = ("name", "env_id", "reference_returns", "reference_name")
OPTIONAL = (("env_id", str | None), ("reference_name", str | None))


def cached(
    name: str,
    files: Sequence[Path],
    convert: Callable[[Store], Episodes],
    size: Callable[[], int] = lambda: 0,
    min_seconds: float = 0,
    variant: str = "",
) -> Episodes:
    """``convert(store)``, or what it gave the last time for these files and this ``variant``.

    ``size`` says how many bytes its arrays will have. Of a small set only what took ``min_seconds`` to convert is kept,
    and a folder that cannot be written costs one line in the log. Without room for a large one: DatasetError.
    """
    folder = Path(os.environ.get("UNROLL_CACHE") or Path.home() / ".cache" / "unroll")
    entry = folder / f"{re.sub('[^A-Za-z0-9.-]', '-', name)[:80]}-{_key(files, variant)}"
    episodes = _kept(entry)
    if episodes is not None:
        return episodes
    expected = size()
    if is_large(expected):
        return _convert_large(convert, expected, entry)
    began = time.perf_counter()
    episodes = convert(Store())
    if time.perf_counter() - began >= min_seconds:
        try:
            _write(episodes, entry)
        except OSError as error:
            log.warning("%s: not cached (%s)", entry, error)
    return episodes


def _kept(entry: Path) -> Episodes | None:
    if not entry.exists():
        return None
    try:
        return _read(entry)
    except Exception as error:  # whatever is wrong with it, the source still exists
        log.warning("%s: damaged cache entry, converted again (%s)", entry, one_line(error))
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _convert_large(convert: Callable[[Store], Episodes], size: int, entry: Path) -> Episodes:
    """One process at a time converts a large set; the others wait, and read what it made."""
    with contextlib.ExitStack() as stack:
        with refusals(entry.parent, size):
            entry.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(entry.with_name(f".{entry.name}.lock")))
        episodes = _kept(entry)
        if episodes is not None:
            return episodes
        _write_large(convert, size, entry)
        return _read(entry)


def _write_large(convert: Callable[[Store], Episodes], size: int, entry: Path) -> None:
    """Straight into the entry's files."""
    temporary = entry.with_name(f".{entry.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # what a process that was killed has left
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        store = stack.enter_context(contextlib.closing(DiskStore(temporary, size)))
        log.warning("%s: %.1f GB are converted, once, into %s", entry.name, size / 1e9, entry)
        episodes = convert(store)
        episodes = dataclasses.replace(episodes, scan=scan(episodes))
        with refusals(entry.parent, size):
            _write_rest(episodes, temporary, store.names)
            os.rename(temporary, entry)


def _key(files: Sequence[Path], variant: str) -> str:
    """The installed environments count as well: they decide about action spaces and step limits."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    world = gym.__version__, importlib.util.find_spec("gymnasium_robotics") is not None
    return hashlib.sha256(json.dumps([FORMAT, stats, variant, world]).encode()).hexdigest()[:20]


def _write(episodes: Episodes, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        _write_rest(episodes, temporary, written=())
        shutil.rmtree(entry, ignore_errors=True)  # that another process has made meanwhile
        os.rename(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; left where writing failed


def _write_rest(episodes: Episodes, folder: Path, written: Collection[str]) -> None:
    """All but the arrays that are there already, and ``meta.json``."""
    arrays = {key: getattr(episodes, key) for key in ARRAYS if getattr(episodes, key) is not None}
    space = episodes.action_space
    if isinstance(space, gym.spaces.Box):
        arrays |= {"low": space.low, "high": space.high}
    if episodes.scan is not None:
        arrays |= {"mean": episodes.scan.mean, "std": episodes.scan.std}
    for key in arrays.keys() - set(written):
        np.save(folder / f"{key}.npy", arrays[key], allow_pickle=False)
    meta = {key: getattr(episodes, key) for key in TEXTS}
    meta |= {"n": None if isinstance(space, gym.spaces.Box) else int(space.n)}
    found = episodes.scan
    meta |= {"faults": None if found is None else [found.not_finite, found.outside, found.partly_known]}
    meta |= {"checksums": {key: _checksum(values) for key, values in arrays.items()}}
    meta |= {"checksum": _meta_checksum(meta)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _read(entry: Path) -> Episodes:
    meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    if meta.pop("checksum") != _meta_checksum(meta):
        raise ValueError("meta.json differs from its checksum")
    if not set(ARRAYS) - {"final_observations"} <= set(meta["checksums"]) <= {*ARRAYS, "low", "high", "mean", "std"}:
        raise ValueError("its arrays are not those of a dataset")
    # mapped first: a header that declares more than the file holds allocates nothing then
    arrays: dict[str, Any] = {key: np.load(entry / f"{key}.npy", "r", allow_pickle=False) for key in meta["checksums"]}
    large = is_large(sum(values.nbytes for values in arrays.values()))
    for key, values in arrays.items():
        if not (large and key in MAPPED):
            arrays[key] = values = np.array(values)
        if _checksum(values) != meta["checksums"][key]:
            raise ValueError(f"{key} differs from its checksum")
    low, high = arrays.pop("low", None), arrays.pop("high", None)
    if meta["n"] is None and not low.dtype == high.dtype == np.float32:
        raise ValueError("the bounds of its actions are no float32")
    space = gym.spaces.Discrete(meta["n"]) if meta["n"] else gym.spaces.Box(low, high, dtype=np.float32)
    texts = {key: meta[key] for key in TEXTS}
    if texts["reference_returns"] is not None:
        random, expert = map(float, texts["reference_returns"])
        texts["reference_returns"] = random, expert
    if any(not isinstance(texts[key], kind) for key, kind in (("name", str), *OPTIONAL)):
        raise ValueError("its names are no text")
    known = None
    if meta["faults"] is not None:
        not_finite, outside, partly = meta["faults"]
        known = Scan(arrays.pop("mean"), arrays.pop("std"), not_finite, tuple(outside), tuple(partly))
    episodes = Episodes(action_space=space, scan=known, **texts, **arrays)
    for key, (kind, axes) in TYPES.items():
        values = getattr(episodes, key)
        if values is not None and (values.dtype != kind or values.ndim != axes):
            raise ValueError(f"{key} is {values.dtype} of {values.ndim} axes")
    if not len(episodes.observations) == len(episodes.actions) == episodes.n_steps == episodes.lengths.sum():
        raise ValueError("its arrays do not fit each other")
    return episodes


def _checksum(values: np.ndarray) -> str:
    """Of type, shape and contents: CRC-32 finds damage, at memory speed; it is no protection against intent."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    starts: Sequence[int] = range(0, len(data), PART)
    if len(data) > SAMPLED_ABOVE:
        starts = [(len(data) - PART) * i // (SAMPLES - 1) for i in range(SAMPLES)]
    crc = 0
    for start in starts:
        crc = zlib.crc32(data[start : start + PART].data, crc)
    return f"{values.dtype} {values.shape} {crc:08x}"


def _meta_checksum(meta: dict[str, Any]) -> int:
    """Of what meta.json says."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
