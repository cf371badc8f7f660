"""What a process is told before it imports PyTorch."""

from __future__ import annotations

import os


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
