"""Ways to change a file: its bytes, the tree in JSON or YAML, the arrays in HDF5 or safetensors.

Where a function changes the tree or the arrays of a checkpoint, it makes the manifest agree with them again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS
from unroll.envs.datasets.sources.checks import datasets_of

Change = Callable[[np.ndarray], Any]  # makes another array; None: there is none then

ODD = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**18, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "..", "os:system", "\u0000", "\ud800", "9" * 400, [], {}, [[]], [1, "a"], {"a": {}}, "Pendulum-v1", "CartPole-v1",
)  # fmt: skip
ODD_ATTRIBUTES = (*ODD[1:], b"\xff\xfe", "x" * 5000, np.zeros(3), h5py.Empty("f4"), "Nothing-v0", "FrozenLake-v1")


def sign(checkpoint: Path) -> None:
    """Write the manifest that agrees with the files of a checkpoint."""
    manifest = {}
    for name in (TENSORS, STATE):
        content = (checkpoint / name).read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def mutate_bytes(rng: Random, path: Path) -> None:
    """Write over, fill, cut out or repeat blocks; sometimes flip one bit alone, or cut the end off."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        at = rng.randrange(len(data) or 1)
        block = slice(at, at + rng.choice((1, 2, 4, 8, 64, 512)))
        old = bytes(data[block])
        filled = bytes([rng.choice((0, 0xFF, 0x7F, 0x80))]) * len(old)
        flipped = bytes([byte ^ 1 << rng.randrange(8) for byte in old[:1]]) + old[1:]
        data[block] = rng.choice((flipped, flipped, rng.randbytes(len(old)), filled, b"", old + old))
        if rng.random() < 0.05:
            del data[at:]
    path.write_bytes(data)


def read_tree(path: Path) -> Any:
    """Read a JSON or YAML file."""
    parse = json.loads if path.suffix == ".json" else yaml.safe_load
    return parse(path.read_text())


def write_tree(path: Path, tree: Any) -> None:
    """Write a JSON or YAML file."""
    dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
    path.write_text(dump(tree))
    if path.name == STATE:
        sign(path.parent)


def set_value(path: Path, keys: str, value: Any) -> None:
    """Set ``outer.inner`` of a JSON or YAML file."""
    tree = read_tree(path)
    *outer, last = keys.split(".")
    node = tree
    for key in outer:
        node = node[key]
    node[last] = value
    write_tree(path, tree)


def mutate_tree(rng: Random, path: Path) -> None:
    """Remove, repeat, rename or replace nodes of a JSON or YAML file, also in its texts that are JSON."""
    tree = read_tree(path)
    texts = [key for key, value in tree.items() if isinstance(value, str) and value.startswith("{")]
    for key in texts:
        tree[key] = json.loads(tree[key])
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        parent, key = rng.choice(places)
        edit = rng.randrange(5)
        if edit == 0:
            del parent[key]
        elif edit == 1 and isinstance(parent, dict):
            parent[rng.choice(("x", "", f"{key}_", "id", "type"))] = parent.pop(key)
        else:
            other, where = rng.choice(places)
            parent[key] = copy.deepcopy(other[where] if edit == 2 else rng.choice(ODD))
    for key in texts:
        if isinstance(tree.get(key), dict):
            tree[key] = json.dumps(tree[key])
    write_tree(path, tree)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every node below the root."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _lists(x: np.ndarray) -> np.ndarray:
    lists = np.empty(len(x), h5py.vlen_dtype(np.float32))
    for i in range(len(x)):
        lists[i] = np.ones(i % 3, np.float32)
    return lists


SHAPES: dict[str, Change] = {
    "shorter": lambda x: x[:-2],
    "longer": lambda x: np.concatenate([x, x]),
    "wider": lambda x: np.stack([x, x], -1),
    "empty": lambda x: x[:0],
    "a number": lambda x: x.reshape(-1)[0],
    "transposed": lambda x: x.reshape(x.shape[::-1]),
    "missing": lambda x: None,
}
CASTS: dict[str, Change] = {dtype: partial(np.asarray, dtype=dtype) for dtype in ("f2", "i1", "?", "c8")}
TYPES: dict[str, Change] = {  # that no recording has
    "text": lambda x: np.full(len(x), "left", h5py.string_dtype()),
    "bytes": lambda x: np.full(x.shape, b"12"),
    "complex": CASTS["c8"],
    "records": lambda x: np.zeros(x.shape, [("a", "f4"), ("b", "i4")]),
    "lists": _lists,
}


def poke(rng: Random, value: float) -> Change:
    """Change one number, if the array is one of floating point."""

    def change(x: np.ndarray) -> np.ndarray:
        x = np.array(x)
        if x.size and x.dtype.kind == "f":
            x.reshape(-1)[rng.randrange(x.size)] = value
        return x

    return change


@contextlib.contextmanager
def arrays_of(path: Path) -> Iterator[MutableMapping[str, Any]]:
    """Open the arrays of an HDF5 file or of a checkpoint to be changed."""
    if path.suffix == ".hdf5":
        with h5py.File(path, "a") as file:
            yield file
    else:
        tensors = load_file(path)
        yield tensors
        save_file({name: np.asarray(values) for name, values in tensors.items()}, path)
        sign(path.parent)


def change_array(
    rng: Random, path: Path, change: Change, names: Iterable[str] = (), unread: tuple[str, ...] = ()
) -> None:
    """Change one of the arrays ``names`` that ``change`` has an effect on.

    No names: all but those that begin with ``unread``.
    """
    with arrays_of(path) as arrays, np.errstate(all="ignore"):
        changed = {}
        for name in names or [name for name in arrays if not name.startswith(unread)]:
            before = arrays[name][()]
            with contextlib.suppress(IndexError, ValueError):  # not every change can be made to a single number
                after = change(before)
                if after is None or after.dtype != before.dtype or not np.array_equal(after, before):
                    changed[name] = after

        name = rng.choice(sorted(changed))
        del arrays[name]
        if changed[name] is not None:
            arrays[name] = changed[name]


def mutate_arrays(rng: Random, path: Path) -> None:
    """Change values, types, shapes, names and attributes of an HDF5 file."""
    with h5py.File(path, "a") as file, np.errstate(all="ignore"):
        for _ in range(rng.choice((1, 1, 2, 3))):
            items = datasets_of(file)
            name = rng.choice(items).name
            poked = poke(rng, rng.choice((np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0, 3.0, 1e5)))
            dtype = rng.choice(("f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "S3", ">f4", ">i8"))
            change = rng.choice((*SHAPES.values(), *TYPES.values(), poked, poked, partial(np.asarray, dtype=dtype)))
            with contextlib.suppress(Exception):  # numbers that cannot be cast, a name that is below itself
                edit = rng.randrange(8)
                if edit == 0:
                    key = rng.choice(("env", "episode", "total_steps", "id", "seed", "shape"))
                    rng.choice((file, file[name], file[name].parent)).attrs[key] = rng.choice(ODD_ATTRIBUTES)
                elif edit == 1:
                    file.move(name, rng.choice((f"{name}_", "final_observations", "timeouts", "infos/x")))
                else:
                    values = change(rng.choice((file[name], file[name], rng.choice(items)))[()])
                    del file[name]
                    if values is not None:
                        file[name] = values
