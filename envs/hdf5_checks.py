"""What an HDF5 file declares, checked before anything is read or allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable

import h5py

from envs.datasets import DatasetError
from envs.limits import machine_memory

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
