"""How a process that learns or acts uses its threads and its memory; told before it imports PyTorch."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)


def prepare_process() -> None:
    let_threads_sleep()
    keep_freed_memory()
    if "RANK" in os.environ:  # of torchrun's processes each would be told what might make it faster
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def let_threads_sleep() -> None:
    """PyTorch's threads wait for the next operation for some microseconds and then sleep; no effect after ``import
    torch``.

    By default they spin for milliseconds (GNU's OpenMP), on the core that MuJoCo would step an environment on: on two
    cores 100 environments of Hopper are stepped 1.7 times as fast without, and an update that shares the cores with
    another process is 50 times as fast. With a tenth of this count a step of few rows is slower than by default.
    What the user's environment says of it is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_freed_memory() -> None:
    """glibc keeps what an update frees for the next one, which would get it back from the system page by page: 0 to
    7 % of an update on one thread, a tenth of acting with a window of 100 environments."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it takes
        libc.mallopt(_TRIM_THRESHOLD, 2**30)


def give_back_memory() -> None:
    """Give the system back what is free now. After an evaluation: what it leaves lies among what updates take, which
    would touch more and more of it, 100 MB in a dozen evaluations."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
