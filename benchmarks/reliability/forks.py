"""Run a function in a forked child whose time and memory are limited, so that a crash, a hang or an explosion is seen.

Everything is imported once, by the parent. It must not have computed in parallel before: threads are not forked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADDRESS_SPACE = 6 << 30  # bytes that a child may map on top of what its parent has
FOLDERS = ("UNROLL_CACHE", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH")  # the user's own stay out of it
GROWTH = 1 << 30  # bytes that it may use on top


@dataclasses.dataclass
class Outcome:
    """What became of a child: ``code`` is its exit code or minus the signal that ended it, ``grown`` the bytes that it
    used more than one that does nothing."""

    code: int
    stderr: str
    seconds: float
    grown: int
    late: bool = False


def run(function: Callable[[], int | None], folder: Path, seconds: float = 60) -> Outcome:
    """``function`` in a child whose current folder is ``folder``; its exit code is what the function returns, or that
    of its SystemExit, or 70 after another exception, whose traceback is on its standard error."""
    log = folder / ".stderr"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(function, folder, log)
    late = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > seconds:
            late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    stderr = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    grown = usage.ru_maxrss * 1024 - resident()
    return Outcome(os.waitstatus_to_exitcode(status), stderr, time.monotonic() - began, grown, late)


def _child(function: Callable[[], int | None], folder: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for name in FOLDERS:
            os.environ[name] = str(folder / name.lower())
        for stream, path in ((1, os.devnull), (2, str(log))):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
        limit = _mapped() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = function() or 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code & 0xFF)


def made(top: Path, make: Callable[[Path], Any]) -> Path:
    """The folder ``healthy`` in ``top``, which ``make`` has filled in a child: what is then damaged."""
    healthy = top / "healthy"
    healthy.mkdir()
    result = run(lambda: make(healthy), healthy, 300)
    if result.code != 0:
        raise SystemExit(f"cannot make what is to be damaged:\n{result.stderr}")
    return healthy


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
