"""Where a conversion puts its rows: into memory, or, where they are too many, into files that are then mapped."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from unroll.errors import DatasetError

LARGE = 1 / 4  # share of the memory: reading, converting and padding a set takes up to three times its size


def is_large(size: int) -> bool:
    """Whether arrays of ``size`` bytes had better stay on the disk."""
    return size > LARGE * available_memory()


@contextlib.contextmanager
def refusals(folder: Path, size: int) -> Iterator[None]:
    """While ``size`` bytes are written to ``folder``: what the disk refuses is a DatasetError of one line."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"is large beside the memory, so that it is kept as files, {size / 1e9:.1f} GB in {folder}, but: "
            f"{error.strerror or error}; UNROLL_CACHE names another folder"
        ) from None


class Store:
    """Arrays that grow by rows, in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def append(self, **rows: np.ndarray) -> None:
        """Some more rows of each of these arrays."""
        for name, values in rows.items():
            self._parts.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, Any]:
        """All of them, whole; nothing can be appended then."""
        whole = {}
        for name in list(self._parts):
            parts = self._parts.pop(name)
            whole[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole


class DiskStore(Store):
    """The same as .npy files in ``folder``, memory-mapped for reading once they are whole.

    They are written, and not mapped for writing: on a full disk a mapped page ends the process, a write is an error.
    Raises DatasetError, one line, where the folder has no room for ``size`` bytes or refuses to be written.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self._files: dict[str, tuple[IO[bytes], np.ndarray, int]] = {}  # file, a row's form, rows so far
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
                    file: IO[bytes] = (self.folder / f"{name}.npy").open("wb", buffering=1 << 20)
                    self._files[name] = file, values[:0].copy(), 0  # a view would keep the values
                    _write_header(file, values[:0], 0)
                file, form, n = self._files[name]
                if values.dtype != form.dtype or values.shape[1:] != form.shape[1:]:
                    raise ValueError(f"{name} changes from rows of {form.shape[1:]} to {values.shape[1:]} in row {n}")
                file.write(np.ascontiguousarray(values).data)
                self._files[name] = file, form, n + len(values)

    def arrays(self) -> dict[str, Any]:
        with refusals(self.folder.parent, self.size):
            for file, form, n in self._files.values():
                file.seek(0)
                _write_header(file, form, n)
                file.close()
        return {name: np.load(self.folder / f"{name}.npy", "r", allow_pickle=False) for name in self._files}

    def close(self) -> None:
        """Give up what is not whole."""
        for file, _, _ in self._files.values():
            with contextlib.suppress(OSError):  # a full disk refuses again what is in the buffer
                file.close()


def _write_header(file: IO[bytes], form: np.ndarray, n: int) -> None:
    """Its length is the same for any n: numpy leaves room for the first axis to grow."""
    header = {"descr": np.lib.format.dtype_to_descr(form.dtype), "fortran_order": False, "shape": (n, *form.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


@functools.cache
def machine_memory() -> int:
    """Bytes that a process here can have at most: the machine's, or less where a container has less."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        memory = 1 << 40
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return memory


def available_memory() -> int:
    """Bytes of it that can be had without swapping, as the kernel estimates; half where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = machine_memory() // 2
    return min(free, machine_memory())
