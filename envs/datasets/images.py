"""Keep an observation that holds images as one row of bytes.

Its parts stand side by side, sorted by name: an image as its pixels, one byte each, and anything else
as float32 numbers, four bytes each. So an image takes as much room in RAM and on the disk as it has
pixels, and a dataset has one row for each step whatever is observed.

Observations without images are rows of float32 numbers (see conversion.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.conversion import flatten

# The shape of each part by its name: of an image as the environment shows it (three axes), else the
# number of float32 numbers (one axis). An image that is no part of a Dict has the name "".
Parts = dict[str, tuple[int, ...]]

FLOAT_BYTES = 4
MOST_BYTES = 1 << 22  # of a row


def is_image(space: gym.Space) -> bool:
    """Say whether a space is of images, by the rule of Stable-Baselines3: bytes from 0 to 255 along three axes."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def is_text(space: gym.Space) -> bool:
    """Say whether a space is of text, whatever class it is of: MiniGrid's missions have one of their own."""
    return space.dtype is not None and space.dtype.kind == "U"


def beside_texts(space: gym.Space) -> tuple[gym.Space, list[str]]:
    """Return a Dict without those of its parts that are texts, and the names of these; any other space as it is."""
    texts = [key for key, part in _spaces(space).items() if is_text(part)]
    if not isinstance(space, gym.spaces.Dict) or not texts:
        return space, []
    return gym.spaces.Dict([(key, part) for key, part in space.spaces.items() if key not in texts]), texts


def texts_in_words(texts: list[str]) -> str:
    """Say that the parts of these names are left out."""
    return f"{' and '.join(texts)} {'are' if len(texts) > 1 else 'is'} text and left out: a policy reads numbers"


def parts_of(space: gym.Space) -> Parts | None:
    """Return the parts of an observation that holds an image, without its texts; None where there is no image."""
    own = _spaces(space)
    if not any(map(is_image, own.values())):
        return None
    parts: Parts = {}
    for name in sorted(own):
        part = own[name]
        if is_text(part):
            continue
        if is_image(part):
            parts[name] = tuple(part.shape or ())
        elif part.is_np_flattenable:
            parts[name] = (gym.spaces.flatdim(part),)
        else:
            return None
    return parts


def check_parts(value: Any) -> Parts:
    """Return parts that a file describes: an object of lists of numbers.

    Raises:
        ValueError: ``parts_of`` cannot have given this.
    """
    if not isinstance(value, dict) or not value:
        raise ValueError("the parts of its observations are no object")
    parts: Parts = {}
    for name in sorted(value):
        shape = value[name]
        sizes = isinstance(shape, list | tuple) and all(type(n) is int and n > 0 for n in shape)
        if not sizes or len(shape) not in (1, 3):
            raise ValueError(f"part {name!r} of its observations has no shape of one or three sizes")
        parts[name] = tuple(shape)
    if not any(len(shape) == 3 for shape in parts.values()):
        raise ValueError("none of the parts of its observations is an image")
    if row_bytes(parts) > MOST_BYTES:
        raise ValueError(f"an observation of {row_bytes(parts):,} bytes, more than {MOST_BYTES:,}")
    return parts


def row_bytes(parts: Parts) -> int:
    """Count the bytes of a row."""
    return sum(map(_part_bytes, parts.values()))


def pack(space: gym.Space, values: Any) -> np.ndarray:
    """Convert T values of a space that holds images (arrays [T, …], or a dict of such) to rows [T, bytes] uint8.

    Raises:
        ValueError: values that are not in their space.
    """
    own = _spaces(space)
    if not isinstance(space, gym.spaces.Dict):
        values = {"": values}
    columns = []
    for name in parts_of(space) or {}:
        part = own[name]
        if is_image(part):
            given = np.asarray(values[name])
            if given.shape[1:] != part.shape or given.dtype != np.uint8:
                raise ValueError(f"images are {given.dtype} {given.shape[1:]}, their space says uint8 {part.shape}")
            columns.append(given.reshape(len(given), -1))
        else:
            columns.append(flatten(part, values[name], False).view(np.uint8))
    return np.concatenate(columns, axis=1)


def pack_one(space: gym.Space, value: Any) -> np.ndarray:
    """Convert one value of a space that holds images to a row [bytes] uint8; see ``pack``."""
    if isinstance(space, gym.spaces.Dict):
        batch: Any = {name: np.asarray(value[name])[None] for name in parts_of(space) or {}}
    else:
        batch = np.asarray(value)[None]
    return pack(space, batch)[0]


def unpack(parts: Parts, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Take rows [T, bytes] apart: images [T, …] uint8 and numbers [T, n] float32, by name."""
    return {name: _values(rows[:, columns], shape) for name, shape, columns in _columns(parts)}


def numbers(parts: Parts, rows: np.ndarray) -> np.ndarray:
    """Return what rows [T, bytes] hold beside images, [T, n] float32. It may be nothing, with n = 0."""
    found = [np.zeros((len(rows), 0), np.float32)]
    for _, shape, columns in _columns(parts):
        if len(shape) == 1:
            found.append(_values(rows[:, columns], shape))
    return np.concatenate(found, axis=1)


def as_numbers(parts: Parts, rows: np.ndarray, most: int | None = None) -> np.ndarray:
    """Return all of rows [T, bytes] as float32 numbers, pixels too, or the first ``most`` of each row."""
    found: list[np.ndarray] = []
    width = 0
    for _, shape, columns in _columns(parts):
        if most is not None and width >= most:
            break
        if most is not None and len(shape) == 3:
            columns = slice(columns.start, min(columns.stop, columns.start + most - width))
        part = rows[:, columns]
        if len(shape) == 1:
            part = _values(part, shape)
        found.append(part.astype(np.float32))
        width += found[-1].shape[1]
    return np.concatenate(found, axis=1)[:, :most]


def parts_in_words(parts: Parts) -> str:
    """Describe the parts on one line: direction 4 numbers, image 7 × 7 × 3 bytes."""
    listed = []
    for name, shape in parts.items():
        size = f"{' × '.join(map(str, shape))} bytes"
        if len(shape) == 1:
            size = "1 number" if shape == (1,) else f"{shape[0]:,} numbers"
        listed.append(f"{name or 'images of'} {size}")
    return ", ".join(listed)


def _spaces(space: gym.Space) -> dict[str, gym.Space]:
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}


def _part_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) if len(shape) == 3 else FLOAT_BYTES * shape[0]


def _columns(parts: Parts) -> Iterator[tuple[str, tuple[int, ...], slice]]:
    """Iterate over the name, the shape and the columns of each part."""
    start = 0
    for name, shape in parts.items():
        stop = start + _part_bytes(shape)
        yield name, shape, slice(start, stop)
        start = stop


def _values(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bytes of one part as what they are."""
    if len(shape) == 3:
        return rows.reshape(len(rows), *shape)
    return np.ascontiguousarray(rows).view(np.float32)
