"""The folder of a run: its name, the lock that keeps a second process out, and what a killed process leaves in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from unroll.configs.fields import RunConfig
from unroll.errors import CheckpointError

LOCK = ".lock"


def claim_folder(config: RunConfig, source: str) -> Path:
    """Make the new folder of a run that learns from ``source``.

    What is there is never overwritten. A name of ours, ``runs/<experiment>/<backbone>/seed<k>``, gets a number; a
    folder that was given must be empty.

    Raises:
        CheckpointError: the given folder is not empty.
    """
    if config.run_dir is not None:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # A hidden file is the lock, or something that a killed process was writing.
        if any(path.name[0] != "." for path in folder.iterdir()):
            hint = "--resume true goes on with a run, another --run_dir starts a new one"
            raise CheckpointError(f"{folder}: is not empty; {hint}")
        return folder

    backbone = config.backbone.name.replace(":", ".")
    first = Path("runs", config.experiment or source, backbone, f"seed{config.seed}")
    first.parent.mkdir(parents=True, exist_ok=True)
    folder = first
    number = 1
    while True:
        try:
            folder.mkdir()  # fails where another process was faster
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


@contextlib.contextmanager
def run_lock(folder: Path, seconds: float = 1) -> Iterator[None]:
    """Hold the lock of a run folder, and wait for it so long: one process at a time learns in it.

    The default is longer than others hold it who only look.

    The operating system gives the lock back when the process ends, however it ends. It also holds between machines
    that share the disk, where the disk has locks.

    Raises:
        CheckpointError: another process has it.
    """
    lock = _lock(folder)
    try:
        lock.acquire(timeout=seconds)
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
    except PermissionError:  # a run of somebody else, of which it cannot be known
        return False


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, thread_local=False)


def clear_leftovers(run: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a run folder under temporary names.

    A checkpoint that was about to be replaced gets its name back.
    """
    folder = run / "checkpoints"
    for old in folder.glob(".*.old"):
        whole = folder / old.name[1 : -len(".old")]
        if not whole.exists():
            os.replace(old, whole)
    for path in (*folder.glob(".*"), *run.glob(".*.[0-9]*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
