"""Check what a dataset's files declare, before anything is read or allocated.

HDF5 files may declare sizes that nothing holds and refer to other files. Minari's metadata may name
code and spaces of any size, and Minari's reader believes them: it validates nothing.
"""

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

# A small file that declares more than this was cut short or is a trap: gzip compresses 1032-fold at
# most.
MAX_COMPRESSION = 2000
# Bytes that may be declared without being stored: what was never written reads as zeros.
UNWRITTEN = 1 << 26

MAX_METADATA = 1 << 26  # bytes of metadata.json
MAX_WIDTH = 1 << 24  # numbers of a space
MAX_DEPTH = 16  # nested spaces


def check_sizes(items: Iterable[h5py.Dataset]) -> None:
    """Check that all of the HDF5 datasets can be read, chunk by chunk, from this file alone.

    Raises:
        DatasetError: one cannot.
    """
    for item in items:
        name = (item.name or "").strip("/")
        if item.external or item.is_virtual:
            raise DatasetError(f"{name} refers to other files")

        chunk = math.prod(item.chunks or (0,)) * item.dtype.itemsize  # a chunk is read as a whole
        declared = max(int(item.size or 0) * item.dtype.itemsize, chunk)
        if declared > max(UNWRITTEN, MAX_COMPRESSION * item.id.get_storage_size()):
            raise DatasetError(f"{name} declares {declared:.2g} bytes, far more than is stored")
        if chunk > machine_memory():
            raise DatasetError(f"{name} declares chunks of {chunk / 2**30:,.1f} GiB, more than this machine's memory")


def check_links(file: h5py.File) -> None:
    """Check that no name in the file leads elsewhere: to another file, or to another name.

    Raises:
        DatasetError: one does.
    """

    def name_of_link(name: str, link: Any) -> str | None:
        return None if isinstance(link, h5py.HardLink) else name

    # The visitor returns what it finds: an exception would be lost on its way through HDF5.
    found = file.visititems_links(name_of_link)
    if found is not None:
        raise DatasetError(f"{found} is a link, where data are wanted")


def datasets_of(file: h5py.File) -> list[h5py.Dataset]:
    """List all HDF5 datasets of a file, each once. Links are not followed."""
    found: list[h5py.Dataset] = []

    def visit(_: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(item)

    file.visititems(visit)
    return found


def read_metadata(path: Path) -> dict[str, Any]:
    """Read Minari's ``metadata.json``, and check the spaces and the environment that it names.

    Raises:
        DatasetError: it lacks a space, declares one that is too large to be made, or names
            something that is no environment. Malformed JSON raises exceptions of other kinds.
    """
    if path.stat().st_size > MAX_METADATA:
        raise DatasetError(f"{path} is {path.stat().st_size:,} bytes long")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or not {"observation_space", "action_space"} <= metadata.keys():
        # To find them out, Minari would build the environment that the metadata name.
        raise DatasetError(f"{path} lacks the observation space or the action space")

    for name in ("observation_space", "action_space"):
        _check_space(json.loads(metadata[name]), name)
    for name in ("env_spec", "eval_env_spec"):
        _check_spec(json.loads(metadata.get(name) or "{}"), path)
    return metadata


def check_data(path: Path, metadata: dict[str, Any]) -> None:
    """Check that Minari's HDF5 file holds the episodes of the metadata and what it declares.

    Raises:
        DatasetError: it does not.
    """
    with h5py.File(path, "r") as file:
        check_links(file)
        check_sizes(datasets_of(file))
        episodes = metadata["total_episodes"]
        if type(episodes) is not int or not 0 <= episodes <= len(file):
            raise DatasetError(f"the metadata count {episodes} episodes, {path} holds {len(file)}")


def _check_space(space: dict[str, Any], name: str, depth: int = 0) -> None:
    """Raise DatasetError for a space that is too large to be made."""
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
    elif kind == "Discrete":
        if not 1 <= space["n"] <= MAX_DISCRETE:
            raise DatasetError(f"{name} is a {kind} of {space['n']}, which is more than {MAX_DISCRETE}")
    elif kind == "MultiBinary":
        numbers = math.prod(_numbers(space["n"]))
        if not 1 <= numbers <= MAX_WIDTH:
            raise DatasetError(f"{name} is a {kind} of {numbers}, which is more than {MAX_WIDTH}")
    elif kind == "MultiDiscrete":
        choices = _numbers(space["nvec"])
        if min(choices) < 1 or sum(choices) > MAX_DISCRETE:
            raise DatasetError(f"{name} is a {kind} of {sum(choices)} choices, which is more than {MAX_DISCRETE}")


def _numbers(value: Any) -> list[int]:
    """List the numbers in nested lists, or the one number."""
    if not isinstance(value, list):
        return [value]
    found = []
    for part in value:
        found += _numbers(part)
    return found


def _check_spec(spec: dict[str, Any], path: Path) -> None:
    """Raise DatasetError if an environment's specification names something else to import.

    Nothing that it names is ever imported. But Python's own modules hold no environment, so a file
    that names one of them is an attempt to run code.
    """
    if spec.get("id") and not is_env_id(spec["id"]):
        raise DatasetError(f"{path}: {spec['id']!r} is not the id of an environment")
    for code in _entry_points(spec):
        if code.replace(":", ".").split(".")[0] in sys.stdlib_module_names:
            raise DatasetError(f"{path} names {code} as an environment")


def _entry_points(spec: Any) -> Iterator[str]:
    """Find all entry points in nested dicts and lists."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key.endswith("entry_point") and isinstance(value, str):
                yield value
            else:
                yield from _entry_points(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _entry_points(value)
