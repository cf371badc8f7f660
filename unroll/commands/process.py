"""How a command starts and ends: threads and memory, errors as one line, exit codes.

Nothing here imports PyTorch, which takes seconds: a wrong argument is told before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from unroll.errors import UserError

DOORS = ("train", "evaluate", "compare")  # commands with a file of their own in the checkout

# Parameters of mallopt(3).
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3


class Reporting:
    """A context that turns errors that the user can mend into one line on standard error and an exit code.

        with Reporting("unroll train") as report:
            ...
            return 0
        return report.code

    The code is 2 for a UserError, or a file or folder that the system refuses, and 130 for Ctrl-C.
    """

    def __init__(self, name: str):
        self.name = name
        self.code = 0

    def __enter__(self) -> Reporting:
        prepare_process()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if isinstance(error, UserError | OSError):  # OSError: a folder that cannot be written, a full disk
            print(f"{self.name}: {error}", file=sys.stderr)
            self.code = 2
        elif isinstance(error, KeyboardInterrupt):
            print(f"{self.name}: interrupted", file=sys.stderr)
            self.code = 130
        return self.code != 0


def prepare_process() -> None:
    """Set how the process uses threads and RAM, before it imports PyTorch."""
    keep_freed_memory()
    # Under torchrun each process would print advice on its speed.
    if "RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def keep_freed_memory() -> None:
    """Let glibc keep what an update frees for the next one.

    Otherwise the next update gets it back from the system page by page. That costs up to 7 % of an update on one
    thread, and a tenth of acting with a window in 100 environments.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 2**25)  # the most that it takes
        libc.mallopt(TRIM_THRESHOLD, 2**30)


def give_back_memory() -> None:
    """Return freed pages to the operating system.

    After an evaluation, fragmentation otherwise adds about 100 MB per dozen evaluations.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def leave(code: int) -> int:
    """Return the exit code of a process. A process of torchrun ends here.

    It ends without the cleanup of its libraries, in which the threads of the process group now and then abort it: all
    is written by then, and the job would count as failed nevertheless.
    """
    if "RANK" in os.environ:
        exit_now(code)
    return code


def exit_now(code: int) -> NoReturn:
    """End the process without any cleanup but that of its outputs."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def expand_home(options: Any, *names: str) -> None:
    """Read a ~ at the beginning of these options as the home folder, which no shell does after an =."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, str):
            setattr(options, name, os.path.expanduser(value))
        elif isinstance(value, list):
            setattr(options, name, [os.path.expanduser(part) for part in value])


def typed(command: str) -> str:
    """Return the beginning of a command line of ours as this user types it.

    That is ``unroll train``, or ``python train.py`` in a checkout where nothing is installed.
    """
    script = Path(sys.argv[0])
    if script.parts[-2:] == ("unroll", "__main__.py") or (script.stem in DOORS and command not in DOORS):
        return f"python -m unroll {command}"
    if script.suffix == ".py" and script.stem in DOORS:
        return f"python {command}.py"
    return f"unroll {command}"
