"""Converted datasets kept as flat .npy files, so that a set of thousands of short episodes is converted only once.

``$UNROLL_CACHE`` or ``~/.cache/unroll`` holds one folder per dataset: an array per field and ``meta.json``. Its name
contains a hash of the source files (path, size, time of change) and of what else decides the result. An entry is read
without pickle, and checked against the checksums in its ``meta.json``; what does not agree is made again.
"""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs.datasets import Episodes, one_line

log = logging.getLogger(__name__)

FORMAT = 1
ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations")
TYPES = {
    "observations": (np.float32, 2),
    "rewards": (np.float32, 1),
    "lengths": (np.int64, 1),
    "terminated": (np.bool_, 1),
    "truncated": (np.bool_, 1),
    "final_observations": (np.float32, 2),
}
TEXTS = ("name", "env_id", "reference_returns", "reference_name")


def cached(
    name: str, files: Sequence[Path], convert: Callable[[], Episodes], min_seconds: float = 0, variant: str = ""
) -> Episodes:
    """``convert()``, or what it gave the last time for these files and this ``variant``.

    Only what took ``min_seconds`` to convert is kept. A folder that cannot be written costs one line in the log.
    """
    folder = Path(os.environ.get("UNROLL_CACHE") or Path.home() / ".cache" / "unroll")
    entry = folder / f"{re.sub('[^A-Za-z0-9.-]', '-', name)[:80]}-{_key(files, variant)}"
    if entry.exists():
        try:
            return _read(entry)
        except Exception as error:  # whatever is wrong with it, the source still exists
            log.warning("%s: damaged cache entry, converted again (%s)", entry, one_line(error))
    began = time.perf_counter()
    episodes = convert()
    if time.perf_counter() - began >= min_seconds:
        try:
            _write(episodes, entry)
        except OSError as error:
            log.warning("%s: not cached (%s)", entry, error)
    return episodes


def _key(files: Sequence[Path], variant: str) -> str:
    """The installed environments count as well: they decide about action spaces and step limits."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    world = gym.__version__, importlib.util.find_spec("gymnasium_robotics") is not None
    return hashlib.sha256(json.dumps([FORMAT, stats, variant, world]).encode()).hexdigest()[:20]


def _write(episodes: Episodes, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        arrays = {key: getattr(episodes, key) for key in ARRAYS if getattr(episodes, key) is not None}
        space = episodes.action_space
        if isinstance(space, gym.spaces.Box):
            arrays |= {"low": space.low, "high": space.high}
        for key, values in arrays.items():
            np.save(temporary / f"{key}.npy", values, allow_pickle=False)
        meta = {key: getattr(episodes, key) for key in TEXTS}
        meta |= {"n": None if isinstance(space, gym.spaces.Box) else int(space.n)}
        meta |= {"checksums": {key: _checksum(values) for key, values in arrays.items()}}
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        os.rename(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; left where writing failed


def _read(entry: Path) -> Episodes:
    meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    if not set(ARRAYS) - {"final_observations"} <= set(meta["checksums"]) <= {*ARRAYS, "low", "high"}:
        raise ValueError("its arrays are not those of a dataset")
    # mapped first: a header that declares more than the file holds allocates nothing then
    arrays: dict[str, Any] = {
        key: np.array(np.load(entry / f"{key}.npy", "r", allow_pickle=False)) for key in meta["checksums"]
    }
    for key, values in arrays.items():
        if _checksum(values) != meta["checksums"][key]:
            raise ValueError(f"{key} differs from its checksum")
    low, high = arrays.pop("low", None), arrays.pop("high", None)
    if meta["n"] is None and not low.dtype == high.dtype == np.float32:
        raise ValueError("the bounds of its actions are no float32")
    space = gym.spaces.Discrete(meta["n"]) if meta["n"] else gym.spaces.Box(low, high, dtype=np.float32)
    texts = {key: meta[key] for key in TEXTS}
    if texts["reference_returns"] is not None:
        texts["reference_returns"] = tuple(texts["reference_returns"])
    episodes = Episodes(action_space=space, **texts, **arrays)
    for key, (kind, axes) in TYPES.items():
        values = getattr(episodes, key)
        if values is not None and (values.dtype != kind or values.ndim != axes):
            raise ValueError(f"{key} is {values.dtype} of {values.ndim} axes")
    if not len(episodes.observations) == len(episodes.actions) == episodes.n_steps == episodes.lengths.sum():
        raise ValueError("its arrays do not fit each other")
    return episodes


def _checksum(values: np.ndarray) -> str:
    """Of type, shape and contents: CRC-32 finds damage, at memory speed; it is no protection against intent."""
    return f"{values.dtype} {values.shape} {zlib.crc32(np.ascontiguousarray(values).data):08x}"
