"""Damage that happens: other bytes, other shapes and types, NaN."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from tests.reliability import victims
from tests.reliability.cases import CANARY, Case
from tests.reliability.edits import SHAPES, TYPES, Change, arrays_of, change_array, poke, set_value, sign

HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"
FIELDS = ("observations", "actions", "rewards", "terminals")
OF_EPISODE = tuple(
    f"episode_1/{name}" for name in ("observations", "actions", "rewards", "terminations", "truncations")
)


def any_path(rng: Random) -> str:
    """Draw one of all files; those of checkpoints most often."""
    checkpoints = (victims.TENSOR_FILES, victims.STATES, victims.MANIFESTS)
    datasets = (victims.RECORDINGS, (victims.MINARI_DATA, victims.METADATA))
    return rng.choice(rng.choice((*checkpoints, victims.SAVED_CONFIGS, victims.CONFIGS, *datasets)))


def other_content(rng: Random, what: str, content: bytes, paths: tuple[str, ...] = ()) -> Case:
    """Replace all bytes of a file; half of the time under a manifest that agrees, where there is one."""
    path = rng.choice(paths) if paths else any_path(rng)
    signed = path in victims.TENSOR_FILES + victims.STATES and rng.random() < 0.5

    def damage(file: Path) -> None:
        file.write_bytes(content)
        if signed:
            sign(file.parent)

    return Case(path, f"signed {what}" if signed else what, damage)


def truncated(rng: Random) -> Case:
    """Cut anywhere. A config is cut inside of a key: what ends with a whole line is a whole file."""

    def damage(file: Path) -> None:
        content = file.read_bytes()
        cuts: range | list[int] = range(len(content))
        if file.name in victims.CONFIGS:
            cuts = [match.end() for match in re.finditer(rb"^[a-z]{2}", content, re.MULTILINE)]
        file.write_bytes(content[: rng.choice(cuts)])

    return Case(any_path(rng), "cut", damage)


def flipped(rng: Random) -> Case:
    """Flip one bit: anywhere under a manifest or a checksum, else where all can see it, in a signature or in UTF-8."""
    path = any_path(rng)

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        at = rng.randrange(8 if file.suffix == ".hdf5" else len(content))
        content[at] ^= 0x80 if path in (*victims.CONFIGS, victims.METADATA) else 1 << rng.randrange(8)
        file.write_bytes(content)

    return Case(path, "a flipped bit", damage)


def garbage(rng: Random) -> Case:
    return other_content(rng, "random bytes", rng.randbytes(rng.choice((1, 50, 5000)) + rng.randrange(50)))


def empty(rng: Random) -> Case:
    return other_content(rng, "no bytes", b"")


def html(rng: Random) -> Case:
    return other_content(rng, "web page", HTML * rng.choice((1, 100)))


def missing(rng: Random) -> Case:
    path = any_path(rng)
    if path in victims.SAVED_CONFIGS:  # what is left is a checkpoint by itself, which can be evaluated
        return Case(path, "missing", Path.unlink, readers=(victims.RESUME,))
    return Case(path, "missing", Path.unlink)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {CANARY}",)


def evil_pickle(rng: Random) -> Case:
    """Put a pickle under any file's name, as pickle and torch.save write it."""
    protocol = rng.choice((0, 2, 4, "torch", "torch, old"))
    buffer = io.BytesIO()
    if isinstance(protocol, int):
        pickle.dump({"state": Evil()}, buffer, protocol)
    else:
        torch.save({"state": Evil()}, buffer, _use_new_zipfile_serialization=protocol == "torch")
    return other_content(rng, f"pickle ({protocol})", buffer.getvalue())


def array_path(rng: Random) -> str:
    """Draw a file that holds arrays."""
    return rng.choice(rng.choice((victims.TENSOR_FILES, victims.RECORDINGS, (victims.MINARI_DATA,))))


def other_array(rng: Random, path: str, what: str, change: Change) -> Case:
    """Change one of the arrays that must fit each other, and the manifest of a checkpoint with it."""
    if path in victims.RECORDINGS:
        return Case(path, what, lambda file: change_array(rng, file, change, FIELDS))
    if path == victims.MINARI_DATA:
        return Case(path, what, lambda file: change_array(rng, file, change, OF_EPISODE))
    if rng.random() < 0.5:
        return Case(path, what, lambda file: change_array(rng, file, change, ()), readers=(victims.RESUME,))

    # Only a run that goes on needs the state of the rollout.
    readers = (victims.EVALUATE, victims.RECORD)
    return Case(path, what, lambda file: change_array(rng, file, change, (), ("rollout.",)), readers=readers)


def wrong_shapes(rng: Random) -> Case:
    how = rng.choice((*SHAPES, "one more"))
    if how != "one more":
        return other_array(rng, array_path(rng), how, SHAPES[how])

    def add(file: Path) -> None:
        with arrays_of(file) as arrays:
            arrays["policy.more"] = arrays[rng.choice(sorted(arrays))]

    return Case(rng.choice(victims.TENSOR_FILES), how, add)


def wrong_types(rng: Random) -> Case:
    path = array_path(rng)
    if path in victims.TENSOR_FILES:
        dtype = rng.choice(("f2", "i1", "?", "c8"))
        return other_array(rng, path, dtype, lambda x: x.astype(dtype))
    how = rng.choice(sorted(TYPES))
    return other_array(rng, path, how, TYPES[how])


def not_finite(rng: Random) -> Case:
    value = rng.choice((np.nan, np.inf, -np.inf))
    if rng.random() < 0.75:
        return other_array(rng, array_path(rng), str(value), poke(rng, value))
    key = rng.choice(("learning_rate", "max_grad_norm"))
    if key == "max_grad_norm":
        value = np.nan  # infinity is right there: never clipped
    return Case(rng.choice(victims.CONFIGS), f"{key} {value}", lambda file: set_value(file, key, value), (key,))
