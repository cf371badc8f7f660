"""What a dataset's files declare, checked before anything is read or allocated."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py

from unroll.envs.datasets.conversion import MAX_DISCRETE
from unroll.envs.datasets.registered import is_env_id
from unroll.envs.datasets.store import machine_memory
from unroll.errors import DatasetError

MAX_COMPRESSION = 2000  # gzip reaches 1032 at most: a small file that declares more was cut short, or is a trap
UNWRITTEN = 1 << 26  # bytes that may be declared without being stored: what was never written is zeros


def check_sizes(items: Iterable[h5py.Dataset]) -> None:
    """Raise DatasetError unless all of them can be read, chunk by chunk, from this file alone."""
    for item in items:
        name = (item.name or "").strip("/")
        if item.external or item.is_virtual:
            raise DatasetError(f"{name} refers to other files")
        chunk = math.prod(item.chunks or (0,)) * item.dtype.itemsize  # read as a whole, however little of it is used
        declared = max(int(item.size or 0) * item.dtype.itemsize, chunk)
        if declared > max(UNWRITTEN, MAX_COMPRESSION * item.id.get_storage_size()):
            raise DatasetError(f"{name} declares {declared:.2g} bytes, far more than is stored")
        if chunk > machine_memory():
            raise DatasetError(f"{name} declares chunks of {chunk / 2**30:,.1f} GiB, more than this machine's memory")


def check_links(file: h5py.File) -> None:
    """Raise DatasetError where a name leads elsewhere: to another file, or to another name."""

    # an exception of the visitor's own would be lost on its way through HDF5
    found = file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
    if found is not None:
        raise DatasetError(f"{found} is a link, where data are wanted")


def datasets_of(file: h5py.File) -> list[h5py.Dataset]:
    """All of them, each once; links are not followed."""
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


MAX_METADATA, MAX_WIDTH, MAX_DEPTH = 1 << 26, 1 << 24, 16


def read_metadata(path: Path) -> dict[str, Any]:
    """``metadata.json``, with spaces and an environment that can be what they say. Raises DatasetError."""
    if path.stat().st_size > MAX_METADATA:
        raise DatasetError(f"{path} is {path.stat().st_size:,} bytes long")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or not {"observation_space", "action_space"} <= metadata.keys():
        # to find them out Minari would build the environment that the metadata names
        raise DatasetError(f"{path} lacks the observation space or the action space")
    for name in ("observation_space", "action_space"):
        _check_space(json.loads(metadata[name]), name)
    for name in ("env_spec", "eval_env_spec"):
        spec = json.loads(metadata.get(name) or "{}")
        if spec.get("id") and not is_env_id(spec["id"]):
            raise DatasetError(f"{path}: {spec['id']!r} is not the id of an environment")
        for code in _entry_points(spec):
            # never imported, whatever it is; but in Python's own modules there is no environment to name
            if code.replace(":", ".").split(".")[0] in sys.stdlib_module_names:
                raise DatasetError(f"{path} names {code} as an environment")
    return metadata


def check_data(path: Path, metadata: dict[str, Any]) -> None:
    """Raise DatasetError unless the file holds as many episodes as the metadata say, and what it declares."""
    with h5py.File(path, "r") as file:
        check_links(file)
        check_sizes(datasets_of(file))
        episodes = metadata["total_episodes"]
        if type(episodes) is not int or not 0 <= episodes <= len(file):
            raise DatasetError(f"the metadata count {episodes} episodes, {path} holds {len(file)}")


def _check_space(space: dict[str, Any], name: str, depth: int = 0) -> None:
    """Raise DatasetError for a space too large to be made."""
    kind = space["type"]
    if kind in ("Dict", "Tuple"):
        parts = space["subspaces"]
        for part in parts.values() if isinstance(parts, dict) else parts:
            if depth == MAX_DEPTH:
                raise DatasetError(f"{name} is nested more than {MAX_DEPTH} deep")
            _check_space(part, name, depth + 1)
    elif kind == "Box":
        width = math.prod(space["shape"])
        if width > MAX_WIDTH:
            raise DatasetError(f"{name} has {width:,} numbers, which is more than {MAX_WIDTH:,}")
    elif kind in ("Discrete", "MultiBinary"):
        most = MAX_DISCRETE if kind == "Discrete" else MAX_WIDTH
        if not 1 <= space["n"] <= most:
            raise DatasetError(f"{name} is a {kind} of {space['n']}, which is more than {most}")


def _entry_points(spec: Any) -> Iterator[str]:
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key.endswith("entry_point") and isinstance(value, str):
                yield value
            else:
                yield from _entry_points(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _entry_points(value)
