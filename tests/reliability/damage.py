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
from tests.reliability.edits import CASTS, SHAPES, TYPES, Change, arrays_of, change_array, poke, set_value, sign

CHECKPOINTS = victims.TENSOR_FILES + victims.STATES + victims.MANIFESTS
DATASETS = (*victims.RECORDINGS, victims.MINARI_DATA, victims.METADATA)
FIELDS = ("observations", "actions", "rewards", "terminals")
OF_EPISODE = tuple(
    f"episode_1/{name}" for name in ("observations", "actions", "rewards", "terminations", "truncations")
)


def other_bytes(
    rng: Random, content: Callable[[Random, Path], bytes], paths: tuple[str, ...] = (), signed: float = 0.5
) -> Case:
    """Replace the bytes of a file; with the probability ``signed`` under a manifest that agrees, where there is one."""
    groups = (CHECKPOINTS, CHECKPOINTS, victims.SAVED_CONFIGS, victims.CONFIGS, DATASETS)
    path = rng.choice(paths or rng.choice(groups))
    signs = path in victims.TENSOR_FILES + victims.STATES and rng.random() < signed

    def damage(file: Path) -> None:
        file.write_bytes(content(rng, file))
        if signs:
            sign(file.parent)

    return Case(path, "signed" if signs else "", damage)


def truncated(rng: Random, file: Path) -> bytes:
    """Cut anywhere. A config is cut inside of a key: what ends with a whole line is a whole file."""
    content = file.read_bytes()
    if file.name not in victims.CONFIGS:
        return content[: rng.randrange(len(content))]
    keys = list(re.finditer(rb"^[a-z]{2}", content, re.MULTILINE))
    return content[: rng.choice(keys).end()]


def flipped(rng: Random, file: Path) -> bytes:
    """Flip one bit: anywhere under a manifest or a checksum, else where all can see it, in a signature or in UTF-8."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content))
    bit = 1 << rng.randrange(8)
    if file.suffix == ".hdf5":
        at %= 8
    elif file.name in (*victims.CONFIGS, "metadata.json"):
        bit = 0x80
    content[at] ^= bit
    return bytes(content)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {CANARY}",)


def evil_pickle(rng: Random, file: Path) -> bytes:
    """Pickle an object that runs a command, as pickle and torch.save write it."""
    protocol = rng.choice((0, 2, 4, "torch", "torch, old"))
    if isinstance(protocol, int):
        return pickle.dumps({"state": Evil()}, protocol)
    buffer = io.BytesIO()
    torch.save({"state": Evil()}, buffer, _use_new_zipfile_serialization=protocol == "torch")
    return buffer.getvalue()


def missing(rng: Random) -> Case:
    case = Case(rng.choice(CHECKPOINTS + victims.SAVED_CONFIGS + victims.CONFIGS + DATASETS), "", Path.unlink)
    if case.path in victims.SAVED_CONFIGS:  # what is left is a checkpoint by itself, which can be evaluated
        case.readers = (victims.RESUME,)
    return case


def other_array(rng: Random, changes: dict[str, Change], of_tensors: dict[str, Change]) -> Case:
    """Change one of the arrays that must fit each other, and the manifest of a checkpoint with it."""
    path = rng.choice(rng.choice((victims.TENSOR_FILES, victims.RECORDINGS, (victims.MINARI_DATA,))))
    if path not in victims.TENSOR_FILES:
        how = rng.choice(sorted(changes))
        names = OF_EPISODE if path == victims.MINARI_DATA else FIELDS
        return Case(path, how, lambda file: change_array(rng, file, changes[how], names))

    how = rng.choice(sorted(of_tensors))
    if rng.random() < 0.4:
        return Case(path, how, lambda file: change_array(rng, file, of_tensors[how]), readers=(victims.RESUME,))
    if how == "missing" and rng.random() < 0.5:
        return Case(path, "one more", add_array)
    # Only a run that goes on needs the state of the rollout.
    others = (victims.EVALUATE, victims.RECORD)
    return Case(path, how, lambda file: change_array(rng, file, of_tensors[how], unread=("rollout.",)), readers=others)


def add_array(file: Path) -> None:
    """Add an array that no policy has."""
    with arrays_of(file) as arrays:
        arrays["policy.more"] = np.zeros(3)


def wrong_shapes(rng: Random) -> Case:
    return other_array(rng, SHAPES, SHAPES)


def wrong_types(rng: Random) -> Case:
    return other_array(rng, TYPES, CASTS)


def not_finite(rng: Random) -> Case:
    values = {str(value): poke(rng, value) for value in (np.nan, np.inf, -np.inf)}
    if rng.random() < 0.75:
        return other_array(rng, values, values)
    key, value = rng.choice((("learning_rate", np.inf), ("learning_rate", np.nan), ("max_grad_norm", np.nan)))
    return Case(rng.choice(victims.CONFIGS), f"{key} {value}", lambda file: set_value(file, key, value), (key,))
