"""Recurrent policies: decision agents and recurrent PPO over swappable sequence backbones.

import unroll

agent = unroll.load("runs/tmaze/gru/seed0")    # a run folder or a checkpoint, whichever agent it is of
agent = unroll.load("zoo:cartpole_masked/mingru")    # or a trained run that comes with the package
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__version__ = "0.2.0"
__all__ = ["load"]


def _let_threads_sleep() -> None:
    """Let PyTorch's threads wait for the next operation for some microseconds and then sleep.

    By default GNU's OpenMP lets them spin for milliseconds, on the core on which MuJoCo would step an environment. With
    this count 100 environments of Hopper are stepped 1.7 times as fast on two cores, and an update that shares the
    cores with another process is 50 times as fast. A tenth of it would make a step of few rows slower than the default.
    Variables that the user has set are left alone. After ``import torch`` this has no effect.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_let_threads_sleep()


def load(path: str | Path, device: str = "auto") -> Any:
    """Load the agent of a run folder or a checkpoint; see ``unroll.agents.load``."""
    from unroll.agents import load as load_agent

    return load_agent(path, device)
