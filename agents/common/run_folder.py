"""One process at a time learns in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from unroll.errors import CheckpointError

LOCK = ".lock"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder that exists. The operating system gives it back when the process ends, however it
    ends, and also between machines that share the disk, where the disk has locks.

    Raises:
        CheckpointError: another process has it.
    """
    lock = _lock(folder)
    try:
        lock.acquire(timeout=1)  # longer than is_locked holds it
    except Timeout:
        raise CheckpointError(f"{folder}: another process is training in this folder") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is training in the folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with _lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, thread_local=False)
