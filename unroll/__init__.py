"""Recurrent policies: decision agents and recurrent PPO over swappable sequence backbones.

import unroll

agent = unroll.load("runs/tmaze/gru/seed0")    # a run folder or a checkpoint, whichever agent it is of
agent = unroll.load("zoo:cartpole_masked/mingru")    # or a trained run that comes with the package
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.2.0"
__all__ = ["load"]


def load(path: str | Path, device: str = "auto") -> Any:
    """Load the agent of a run folder or a checkpoint; see ``unroll.agents.load``."""
    from unroll.agents import load as load_agent

    return load_agent(path, device)
