"""How to learn: agents with the surface of Stable-Baselines3's algorithms."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ == "agents":
    raise ImportError("this folder is the package unroll.agents: import unroll.agents")

if TYPE_CHECKING:
    from unroll.agents.decision.agent import DecisionAgent as DecisionAgent
    from unroll.agents.ppo.agent import RecurrentPPO as RecurrentPPO

_MODULES = {"DecisionAgent": "unroll.agents.decision.agent", "RecurrentPPO": "unroll.agents.ppo.agent"}
__all__ = ["DecisionAgent", "RecurrentPPO"]


def __getattr__(name: str) -> Any:
    """Import an agent on its first use: PyTorch takes seconds, and a wrong argument is told in less."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
