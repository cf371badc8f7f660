"""What a Minari dataset says of itself, checked before Minari's reader believes it: it validates nothing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from envs.datasets import DatasetError
from envs.hdf5_checks import check_links, check_sizes, datasets_of
from envs.spaces import MAX_DISCRETE, is_env_id

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
