"""Keep the rows of a conversion in RAM, or in memory-mapped files if they are too many.

How much RAM there is also decides what a file may declare: what nothing could hold is refused
before it is allocated.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from unroll.errors import DatasetError

# Share of the RAM: reading, converting and padding a set takes up to three times its size.
LARGE = 1 / 4


@functools.cache
def machine_memory() -> int:
    """Return the bytes of RAM that a process can have: the machine's, or a container's limit."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        total = 1 << 40
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        path = Path("/sys/fs/cgroup") / name
        if path.is_file():
            limit = path.read_text().strip()
            if limit.isdigit():  # "max" is no limit
                total = min(total, int(limit))
    return total


def available_memory() -> int:
    """Return the bytes of RAM that can be had without swapping.

    The kernel estimates them. Half of the RAM is assumed where it does not say.
    """
    free = machine_memory() // 2
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10  # given in kB
    return min(free, machine_memory())


def is_large(size: int) -> bool:
    """Say whether arrays of `size` bytes had better stay on the disk."""
    return size > LARGE * available_memory()


@contextlib.contextmanager
def refusals(folder: Path, size: int) -> Iterator[None]:
    """Turn errors of the disk into a DatasetError while `size` bytes are written to `folder`."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"is large compared to this machine's memory, so it is kept as files, {size / 1e9:.1f} GB in {folder}, "
            f"but: {error.strerror or error}; UNROLL_CACHE names another folder"
        ) from None


class Store:
    """Arrays in RAM that grow by rows."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def append(self, **rows: np.ndarray) -> None:
        """Add rows to each of the named arrays."""
        for name, values in rows.items():
            self._parts.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, Any]:
        """Return all arrays. Nothing can be appended after that."""
        whole = {}
        for name in list(self._parts):
            parts = self._parts.pop(name)  # one array at a time exists twice
            whole[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole


class _GrowingFile(NamedTuple):
    """An .npy file, an empty array with the type and shape of its rows, and their number so far."""

    file: IO[bytes]
    form: np.ndarray
    n: int


class DiskStore(Store):
    """Arrays in .npy files that grow by rows, and are memory-mapped once they are whole.

    The files are written and not mapped for writing: on a full disk a write is an error, but a
    mapped page ends the process.

    Raises:
        DatasetError: the folder has no room for `size` bytes, or cannot be written.
    """

    def __init__(self, folder: Path, size: int):
        self.folder = folder
        self.size = size
        self._files: dict[str, _GrowingFile] = {}
        with refusals(self.folder.parent, self.size):
            folder.mkdir()
            free = shutil.disk_usage(folder).free
            if free < size:
                raise OSError(f"{free / 1e9:.1f} GB are free")

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def append(self, **rows: np.ndarray) -> None:
        for name, values in rows.items():
            with refusals(self.folder.parent, self.size):
                if name not in self._files:
                    self._create(name, values)
                file, form, n = self._files[name]
                if values.dtype != form.dtype or values.shape[1:] != form.shape[1:]:
                    raise ValueError(f"{name} changes from rows of {form.shape[1:]} to {values.shape[1:]} in row {n}")
                file.write(np.ascontiguousarray(values).data)
                self._files[name] = _GrowingFile(file, form, n + len(values))

    def _create(self, name: str, values: np.ndarray) -> None:
        """Open an array's file. Its header is written again when the number of rows is known."""
        file: IO[bytes] = (self.folder / f"{name}.npy").open("wb", buffering=1 << 20)
        form = values[:0].copy()  # a view would keep the values
        self._files[name] = _GrowingFile(file, form, 0)
        _write_header(file, form, 0)

    def arrays(self) -> dict[str, Any]:
        with refusals(self.folder.parent, self.size):
            for file, form, n in self._files.values():
                file.seek(0)
                _write_header(file, form, n)
                file.close()
        return {name: np.load(self.folder / f"{name}.npy", "r", allow_pickle=False) for name in self._files}

    def close(self) -> None:
        """Close the files, whole or not."""
        for growing in self._files.values():
            with contextlib.suppress(OSError):  # a full disk refuses again what is in the buffer
                growing.file.close()


def _write_header(file: IO[bytes], form: np.ndarray, n: int) -> None:
    """Write the header for `n` rows.

    It is equally long for any n: numpy leaves room for the first axis to grow.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(form.dtype),
        "fortran_order": False,
        "shape": (n, *form.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
