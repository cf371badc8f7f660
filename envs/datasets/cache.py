"""Keep converted datasets as flat .npy files.

So a set of thousands of short episodes is converted only once.

``$UNROLL_CACHE`` or ``~/.cache/unroll`` holds one folder per dataset: an array per field and
``meta.json``. Its name contains a hash of the source files (path, size, time of change) and of what
else decides the result. An entry is read without pickle and checked against the checksums in its
``meta.json``. An entry that does not agree is made again.

A set that is large compared to RAM (see store.py) is written there while it is converted, and its
arrays are memory-mapped. Two things are done once for such a set, because each start would
otherwise read all of it again:

* The checksum of an array above 1 GiB covers type, shape and 1,024 blocks of 64 KiB spread over it,
  64 MiB in all. Damage between the blocks is not found.
* The statistics and faults of all values (see statistics.py) are computed after the conversion and
  kept.
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
from unroll.envs.datasets.images import check_parts, row_bytes
from unroll.envs.datasets.registered import not_plain
from unroll.envs.datasets.statistics import Statistics
from unroll.envs.datasets.store import DiskStore, Store, is_large, refusals
from unroll.errors import one_line

log = logging.getLogger(__name__)

FORMAT = 9  # part of every entry's name: entries of another format are not looked at

# The fields of Episodes that are arrays, and those of them with a fixed type and number of axes.
ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations")
TYPES = {
    "observations": (np.float32, 2),
    "rewards": (np.float32, 1),
    "lengths": (np.int64, 1),
    "terminated": (np.bool_, 1),
    "truncated": (np.bool_, 1),
    "final_observations": (np.float32, 2),
}
# The arrays that a large set leaves on the disk.
MAPPED = ("observations", "actions", "rewards", "final_observations")
TEXTS = {"name": str, "env_id": str | None, "env_doubt": str | None, "reference_name": str | None}

# A checksum covers all of an array up to SAMPLED_ABOVE bytes, and SAMPLES blocks of PART bytes of a
# larger one.
SAMPLED_ABOVE = 1 << 30
SAMPLES = 1024
PART = 1 << 16


def cached(
    name: str,
    files: Sequence[Path],
    convert: Callable[[Store], Episodes],
    size: Callable[[], int] = lambda: 0,
    min_seconds: float = 0,
    variant: str = "",
) -> Episodes:
    """Return ``convert(store)``, or what it returned last for these files and this `variant`.

    Args:
        name: a name that people recognise in the cache's folder.
        files: the files that are converted; a change of one makes a new entry.
        convert: reads them, and puts the rows into the store that it is given.
        size: tells how many bytes the converted arrays will have.
        min_seconds: a small set is kept only if its conversion took this long.
        variant: what else decides the result.

    Raises:
        DatasetError: there is no room for a large set. A small one that cannot be written costs a
        line in the log.
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


def _key(files: Sequence[Path], variant: str) -> str:
    """Hash what decides the result of a conversion."""
    stats = []
    for file in files:
        status = file.stat()
        stats.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    # The installed environments count as well: they decide about action spaces and step limits.
    world = (gym.__version__, importlib.util.find_spec("gymnasium_robotics") is not None)
    return hashlib.sha256(json.dumps([FORMAT, stats, variant, world]).encode()).hexdigest()[:20]


def _kept(entry: Path) -> Episodes | None:
    """Read an entry, or return None. A damaged one is removed."""
    if not entry.exists():
        return None
    try:
        return _read(entry)
    except Exception as error:  # whatever is wrong with it, the source still exists
        log.warning("%s: damaged cache entry, converted again (%s)", entry, one_line(error))
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _convert_large(convert: Callable[[Store], Episodes], size: int, entry: Path) -> Episodes:
    """Convert a large set in one process at a time. The others wait, and read its entry."""
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
    """Convert straight into the files of an entry, which appears only when it is whole."""
    temporary = entry.with_name(f".{entry.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        store = stack.enter_context(contextlib.closing(DiskStore(temporary, size)))
        log.warning("%s: %.1f GB are converted, once, into %s", entry.name, size / 1e9, entry)
        episodes = convert(store)
        episodes = dataclasses.replace(episodes, known_statistics=episodes.statistics())
        with refusals(entry.parent, size):
            _write_rest(episodes, temporary, store.names)
            os.rename(temporary, entry)


def _write(episodes: Episodes, entry: Path) -> None:
    """Write an entry, which appears only when it is whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        _write_rest(episodes, temporary, written=())
        shutil.rmtree(entry, ignore_errors=True)  # another process may have made it meanwhile
        os.rename(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; left where writing failed


def _write_rest(episodes: Episodes, folder: Path, written: Collection[str]) -> None:
    """Write ``meta.json`` and the arrays that are not in `written`."""
    arrays: dict[str, np.ndarray] = {}
    for key in ARRAYS:
        values = getattr(episodes, key)
        if values is not None:
            arrays[key] = values

    # An action space is its number of actions and the first of them, or the bounds of a box.
    meta: dict[str, Any] = {"n": None, "start": 0}
    space = episodes.action_space
    if isinstance(space, gym.spaces.Box):
        arrays["low"] = space.low
        arrays["high"] = space.high
    else:
        meta["n"] = int(space.n)
        meta["start"] = int(space.start)

    # Statistics are two arrays, and the rest as a list of four.
    meta["faults"] = None
    known = episodes.known_statistics
    if known is not None:
        arrays["mean"] = known.mean
        arrays["std"] = known.std
        meta["faults"] = [known.not_finite, known.outside, known.partly_known, known.largest_reward]

    for key in arrays.keys() - set(written):
        np.save(folder / f"{key}.npy", arrays[key], allow_pickle=False)
    for key in (*TEXTS, "env_kwargs", "reference_returns", "remarks", "parts", "guessed"):
        meta[key] = getattr(episodes, key)
    meta["checksums"] = {key: _checksum(values) for key, values in arrays.items()}
    meta["checksum"] = _meta_checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _read(entry: Path) -> Episodes:
    """Read an entry and check it. A damaged one raises an exception of any kind."""
    meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    if meta.pop("checksum") != _meta_checksum(meta):
        raise ValueError("meta.json differs from its checksum")
    arrays = _read_arrays(entry, meta["checksums"])

    space: gym.spaces.Box | gym.spaces.Discrete
    low = arrays.pop("low", None)
    high = arrays.pop("high", None)
    if meta["n"] is None and not low.dtype == high.dtype == np.float32:
        raise ValueError("the bounds of its actions are no float32")
    if meta["n"]:
        space = gym.spaces.Discrete(meta["n"], start=meta["start"])
    else:
        space = gym.spaces.Box(low, high, dtype=np.float32)

    texts = {}
    for key, kind in TEXTS.items():
        texts[key] = meta[key]
        if not isinstance(meta[key], kind):
            raise ValueError("its names are no text")
    if not_plain(meta["env_kwargs"]):
        raise ValueError("the arguments of its environment are no plain values")
    reference = meta["reference_returns"]
    if reference is not None:
        random, expert = map(float, reference)
        reference = (random, expert)
    remarks = meta["remarks"]
    if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        raise ValueError("its remarks are no text")
    if not isinstance(meta["guessed"], bool):
        raise ValueError("whether its actions are guessed is neither true nor false")

    known = None
    if meta["faults"] is not None:
        not_finite, outside, partly_known, largest_reward = meta["faults"]
        known = Statistics(
            mean=arrays.pop("mean"),
            std=arrays.pop("std"),
            not_finite=not_finite,
            outside=tuple(outside),
            partly_known=tuple(partly_known),
            largest_reward=float(largest_reward),
        )

    episodes = Episodes(
        action_space=space,
        env_kwargs=meta["env_kwargs"],
        reference_returns=reference,
        known_statistics=known,
        remarks=tuple(remarks),
        parts=None if meta["parts"] is None else check_parts(meta["parts"]),
        guessed=meta["guessed"],
        **texts,
        **arrays,
    )
    _check_shapes(episodes)
    return episodes


def _read_arrays(entry: Path, checksums: dict[str, str]) -> dict[str, Any]:
    """Read the arrays that `checksums` names: into RAM, or memory-mapped where they are large."""
    if not set(ARRAYS) - {"final_observations"} <= set(checksums) <= {*ARRAYS, "low", "high", "mean", "std"}:
        raise ValueError("its arrays are not those of a dataset")
    # All are mapped at first: so a header that declares more than the file holds allocates nothing.
    arrays: dict[str, Any] = {}
    for key in checksums:
        arrays[key] = np.load(entry / f"{key}.npy", "r", allow_pickle=False)

    large = is_large(sum(values.nbytes for values in arrays.values()))
    for key, values in arrays.items():
        if not (large and key in MAPPED):
            arrays[key] = np.array(values)
        if _checksum(arrays[key]) != checksums[key]:
            raise ValueError(f"{key} differs from its checksum")
    return arrays


def _check_shapes(episodes: Episodes) -> None:
    """Raise ValueError unless the arrays have their types and fit each other."""
    for key, (kind, axes) in TYPES.items():
        values = getattr(episodes, key)
        if episodes.parts is not None and key in ("observations", "final_observations"):
            kind = np.uint8
        if values is not None and (values.dtype != kind or values.ndim != axes):
            raise ValueError(f"{key} is {values.dtype} of {values.ndim} axes")
    if episodes.parts is not None and episodes.observation_dim != row_bytes(episodes.parts):
        raise ValueError("its observations are not as wide as their parts")
    if not len(episodes.observations) == len(episodes.actions) == episodes.n_steps == episodes.lengths.sum():
        raise ValueError("its arrays do not fit each other")


def _checksum(values: np.ndarray) -> str:
    """Describe type, shape and contents.

    CRC-32 finds damage at the speed of RAM; it does not protect from intent.
    """
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    starts: Sequence[int] = range(0, len(data), PART)
    if len(data) > SAMPLED_ABOVE:
        starts = [(len(data) - PART) * i // (SAMPLES - 1) for i in range(SAMPLES)]
    crc = 0
    for start in starts:
        crc = zlib.crc32(data[start : start + PART].data, crc)
    return f"{values.dtype} {values.shape} {crc:08x}"


def _meta_checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
