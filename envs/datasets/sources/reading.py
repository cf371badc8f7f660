"""Read arrays of an HDF5 file block by block: the file may be larger than RAM."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from unroll.envs.datasets.statistics import blocks
from unroll.errors import DatasetError


def blocks_of(*items: h5py.Dataset) -> Iterator[slice]:
    """Cut the rows into blocks that are whole chunks of the item with the longest chunks.

    HDF5 unpacks a chunk as a whole for each read of a part of it.
    """
    n = len(items[0])
    row_bytes = sum(item.nbytes for item in items) // n
    longest = 1
    for item in items:
        if item.chunks:
            longest = max(longest, item.chunks[0])
    return blocks(n, row_bytes, longest)


def parts_of(item: h5py.Dataset) -> Iterator[np.ndarray]:
    """Read an item, a block of rows at a time."""
    return (item[rows] for rows in blocks_of(item))


def flags_of(item: h5py.Dataset) -> np.ndarray:
    """Read flags, [N] bool.

    Raises:
        DatasetError: one of them is neither 0 nor 1.
    """
    found = []
    row = 0
    for part in parts_of(item):
        values = part.reshape(-1)
        check_flags(values, (item.name or "").rpartition("/")[2], row)
        found.append(values.astype(bool))
        row += len(values)
    return np.concatenate(found)


def check_flags(values: np.ndarray, name: str, row: int = 0, unit: str = "row") -> None:
    """Raise DatasetError, with the first row, where flags are neither 0 nor 1. They begin at `row`."""
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DatasetError(f"{name} is {values[first]:g} in {unit} {row + first}, where a flag is 0 or 1")
