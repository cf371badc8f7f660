"""How a command starts and ends: threads and memory, errors as one line, exit codes.

Nothing here imports PyTorch: a wrong argument is told before that takes its seconds.
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

# mallopt(3)
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3


class Reporting:
    """Turn errors that the user can mend into one line on standard error and an exit code.

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
    """Tell the process how to use threads and memory, before it imports PyTorch."""
    let_threads_sleep()
    keep_freed_memory()
    if "RANK" in os.environ:  # each process of torchrun would be told what might make it faster
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def let_threads_sleep() -> None:
    """Let PyTorch's threads wait for the next operation for some microseconds and then sleep.

    By default they spin for milliseconds (GNU's OpenMP), on the core that MuJoCo would step an environment on. On two
    cores 100 environments of Hopper are stepped 1.7 times as fast without, and an update that shares the cores with
    another process is 50 times as fast. With a tenth of this count a step of few rows is slower than by default. The
    user's environment decides where it says something. After ``import torch`` this has no effect.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_freed_memory() -> None:
    """Let glibc keep what an update frees for the next one.

    Else the next one would get it back from the system page by page: 0 to 7 % of an update on one thread, and a tenth
    of acting with a window in 100 environments.
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
    """The exit code of a process; one of torchrun's ends here.

    It does not take its libraries apart: now and then the threads of the process group would abort it then, when all
    is written, and the job would count as failed.
    """
    if "RANK" in os.environ:
        exit_now(code)
    return code


def exit_now(code: int) -> NoReturn:
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
    """The beginning of a command line of ours, as this user types it: a door of a checkout, or ``unroll``."""
    script = Path(sys.argv[0])
    if script.parts[-2:] == ("unroll", "__main__.py") or (script.stem in DOORS and command not in DOORS):
        return f"python -m unroll {command}"
    if script.suffix == ".py" and script.stem in DOORS:
        return f"python {command}.py"
    return f"unroll {command}"
