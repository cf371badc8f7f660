"""Damage to the bytes of a file, whatever it holds."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import torch

from benchmarks.reliability import cases
from benchmarks.reliability.cases import Case
from benchmarks.reliability.victims import rewrite
from unroll.agents.common.checkpoint import STATE, TENSORS

CANARY = "canary"
HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"


def truncated(rng: Random) -> Case:
    """Cut anywhere; a config of the user's within a key, because what ends with a line is a whole file."""
    target = cases.any_file(rng)
    share = rng.random()

    def damage(path: Path) -> None:
        content = path.read_bytes()
        at = int(share * len(content))
        if target.reader == "train.py --config":
            begins = [i + 1 for i, byte in enumerate(content) if byte == 10 and content[i + 1 : i + 3].isalpha()]
            at = begins[int(share * len(begins))] + 2
        path.write_bytes(content[:at])

    return target.case(f"cut at {share:.2f}", damage)


def flipped(rng: Random) -> Case:
    """One bit. In files under a checksum anywhere; in others where it can be seen: a key, a signature, UTF-8."""
    target = cases.any_file(rng)
    share, bit = rng.random(), rng.randrange(8)

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        at, flip = int(share * len(content)), 1 << bit
        if path.suffix == ".hdf5":
            at = int(share * 8)
            if path.name == "own.hdf5":
                offset, size = _stored(path, share)
                at = offset + int(share * size)
        elif (path.suffix == ".yaml" and path.name != "config.yaml") or path.name == "metadata.json":
            flip = 0x80
        content[at] ^= flip
        path.write_bytes(content)

    return target.case(f"bit {bit} flipped at {share:.2f}", damage)


def _stored(path: Path, share: float) -> tuple[int, int]:
    """(offset, bytes) of one of the chunks of a recording."""
    with h5py.File(path) as file:
        chunks = [item.id.get_chunk_info(i) for item in file.values() for i in range(item.id.get_num_chunks())]
    chunk = chunks[int(share * len(chunks))]
    return chunk.byte_offset, chunk.size


def garbage(rng: Random) -> Case:
    content = rng.randbytes(rng.choice((1, 50, 5000)) + rng.randrange(50))
    return cases.any_file(rng).case(f"{len(content)} random bytes", lambda path: path.write_bytes(content) and None)


def empty(rng: Random) -> Case:
    return cases.any_file(rng).case("no bytes", lambda path: path.write_bytes(b"") and None)


def html(rng: Random) -> Case:
    content = HTML * rng.choice((1, 100))
    return cases.any_file(rng).case("a web page", lambda path: path.write_bytes(content) and None)


def missing(rng: Random) -> Case:
    """Not there. A run without config.yaml is a checkpoint by itself, which evaluate.py takes."""
    target = cases.any_file(rng)
    if target.name == "config.yaml":
        target.reader = "train.py --resume"
    return target.case("missing", Path.unlink)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {CANARY}",)


def evil_pickle(rng: Random) -> Case:
    """Under every file's name, as pickle and torch.save write it; in checkpoints also under a manifest that agrees."""
    protocol = rng.choice((0, 2, 4, "torch", "torch, old"))
    buffer = io.BytesIO()
    if isinstance(protocol, int):
        buffer.write(pickle.dumps({"state": Evil()}, protocol))
    else:
        torch.save({"state": Evil()}, buffer, _use_new_zipfile_serialization=protocol == "torch")
    content, what = buffer.getvalue(), f"a pickle ({protocol}) that runs a command"
    if rng.random() < 0.3:
        name = rng.choice((TENSORS, STATE))
        signed = dict(tensors=content) if name == TENSORS else dict(state=content)
        return cases.checkpoint(rng).case(f"{what}, signed, as {name}", lambda path: rewrite(path, **signed))
    return cases.any_file(rng).case(what, lambda path: path.write_bytes(content) and None)
