"""Run a function in a forked child with little time and memory, so that a crash, a hang or an explosion is seen.

The parent imports everything once. It must not have computed in parallel before: threads are not forked.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ADDRESS_SPACE = 6 << 30  # bytes that a child may map beyond what its parent has
FOLDERS = ("UNROLL_CACHE", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH")  # a child does not see the user's own
LATE = -signal.SIGKILL


def run(function: Callable[[], int | None], folder: Path, seconds: float) -> tuple[int, str, int]:
    """Call ``function`` in a child whose current folder is ``folder``.

    Returns the child's exit code, its standard error, and how many bytes it used beyond its parent. The code is what
    the function returns, or the code of its SystemExit, or 70 after another exception, or minus the signal that ended
    it; LATE after ``seconds``.
    """
    log = folder / ".stderr"
    child = os.fork()
    if child == 0:
        _be_child(function, folder, log)

    # The descriptor becomes readable when the child ends.
    ended = os.pidfd_open(child)
    if not select.select([ended], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    _, status, usage = os.wait4(child, 0)

    stderr = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), stderr, usage.ru_maxrss * 1024 - _bytes(1)


def _be_child(function: Callable[[], int | None], folder: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for name in FOLDERS:
            os.environ[name] = str(folder / name.lower())

        # The descriptors themselves are redirected: libraries in C write there too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115

        limit = _bytes(0) + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = function() or 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


def _bytes(field: int) -> int:
    """Count the bytes of this process that are mapped (field 0) or resident (field 1)."""
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[field])
