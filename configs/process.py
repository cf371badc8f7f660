"""What a process is told before it imports PyTorch."""

from __future__ import annotations

import os


def let_threads_sleep() -> None:
    """PyTorch's threads wait for the next operation for microseconds and then sleep; no effect after ``import torch``.

    By default they spin for milliseconds (GNU's OpenMP), on the core that MuJoCo would step an environment on: 100
    environments of Hopper on two cores were stepped 1.3 to 1.7 times as fast without. An update that has the cores to
    itself takes as long as before; one that shares them is faster, by up to 28 times in what was measured.
    What the user's environment says of it is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
