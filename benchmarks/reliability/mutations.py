"""Random changes of files: of their bytes, of the tree in a JSON or YAML file, of the arrays in an HDF5 file."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from unroll.envs.datasets.sources.checks import datasets_of

ODD = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**18, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "..", "os:system", "\u0000", "\ud800", "9" * 400, [], {}, [[]], [1, "a"], {"a": {}}, "Pendulum-v1", "CartPole-v1",
)  # fmt: skip


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """A few random edits: bits, bytes, blocks that are copied, cut out, filled, or put in; sometimes an end."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        if not data:
            break
        at, n = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64, 512))
        edit = rng.randrange(7)
        if edit <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif edit == 2:
            data[at : at + n] = rng.randbytes(n)
        elif edit == 3:
            data[at : at + n] = bytes([rng.choice((0, 0xFF, 0x7F, 0x80))]) * n
        elif edit == 4:
            del data[at : at + n]
        elif edit == 5:
            other = rng.randrange(len(data))
            data[at:at] = data[other : other + n]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutate_tree(rng: Random, tree: Any) -> Any:
    """The tree with some of its nodes replaced, removed, repeated, renamed or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        edit = rng.randrange(6)
        if edit == 0:
            del parent[key]
        elif edit == 1:
            other, where = rng.choice(places)
            parent[key] = copy.deepcopy(other[where])
        elif edit == 2 and isinstance(parent, dict):
            parent[rng.choice(("x", "", f"{key}_", "id", "type"))] = parent.pop(key)
        elif edit == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = parent[key] * rng.choice((-1, 0, 2, 10**3, 10**9, 0.5))
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def _places(tree: Any) -> Any:
    """(container, key) of every node below the root; JSON inside of strings is left alone."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def mutate_json(rng: Random, path: Path) -> None:
    """The tree of a JSON file, or the tree in one of its strings, as Minari has them."""
    tree = json.loads(path.read_text())
    nested = [key for key, value in tree.items() if isinstance(value, str) and value.startswith("{")]
    if nested and rng.random() < 0.6:
        key = rng.choice(nested)
        tree[key] = json.dumps(mutate_tree(rng, json.loads(tree[key])))
    else:
        tree = mutate_tree(rng, tree)
    path.write_text(json.dumps(tree))


def mutate_arrays(rng: Random, path: Path) -> None:
    """Other values, types, shapes, names, links and attributes in an HDF5 file."""
    with h5py.File(path, "a") as file:
        for _ in range(rng.choice((1, 1, 2, 3))):
            names = [item.name for item in datasets_of(file)]
            with contextlib.suppress(Exception):  # numbers that cannot be cast, a name that is below itself
                _mutate_one(rng, file, rng.choice(names), names)


def _mutate_one(rng: Random, file: h5py.File, name: str, names: list[str]) -> None:
    edit = rng.randrange(8)
    if edit == 0:
        del file[name]
    elif edit == 1:
        target = rng.choice((file, file[name], file[name].parent))
        target.attrs[rng.choice(("env", "episode", "total_steps", "id", "seed", "shape"))] = rng.choice(ATTRIBUTES)
    elif edit == 2:
        file.move(
            name, rng.choice((f"{name}_", "final_observations", "next_observations", "timeouts", "infos/x", "a/b"))
        )
    elif edit == 3:
        values = file[rng.choice(names)][()]
        del file[name]
        file[name] = values
    else:
        values = rng.choice(CHANGES)(rng, file[name][()])
        del file[name]
        options = dict(chunks=True, compression="gzip") if rng.random() < 0.3 and np.ndim(values) else {}
        file.create_dataset(name, data=values, **options)


ATTRIBUTES: tuple[Any, ...] = (
    "Pendulum-v1", "CartPole-v1", "Nothing-v0", "os:system", "", b"\xff\xfe", 5, 1.5, [1, 2], "x" * 5000, np.zeros(3),
    True, h5py.Empty("f4"), "FrozenLake-v1",
)  # fmt: skip


def _poke(rng: Random, values: np.ndarray) -> np.ndarray:
    values = np.array(values)
    if values.size:
        with np.errstate(all="ignore"):
            odd = rng.choice((np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0, 3.0, 1e5))
            values.reshape(-1)[rng.randrange(values.size)] = (
                odd if values.dtype.kind == "f" else rng.choice((0, 1, 100))
            )
    return values


def _cast(rng: Random, values: np.ndarray) -> np.ndarray:
    kind = rng.choice(("f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "S3", ">f4", ">i8"))
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(kind)


CHANGES: tuple[Callable[[Random, np.ndarray], np.ndarray], ...] = (
    _poke,
    _poke,
    _cast,
    lambda rng, x: x[: rng.randrange(len(x) + 1)] if np.ndim(x) else x,
    lambda rng, x: x.reshape(-1)[: rng.choice((0, 1, 7))] if np.ndim(x) else x,
    lambda rng, x: np.stack([x, x], rng.randrange(np.ndim(x) + 1)),
    lambda rng, x: np.concatenate([x, x], rng.randrange(np.ndim(x))) if np.ndim(x) else x,
    lambda rng, x: x[..., None],
    lambda rng, x: np.zeros_like(x),
    lambda rng, x: np.ones_like(x),
    lambda rng, x: x.T,
    lambda rng, x: np.float32(1),
)
