"""How to learn: agents with the surface of Stable-Baselines3's algorithms.

A new algorithm is a folder and a line in ``AGENTS``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.agents.algorithm import Algorithm
from unroll.agents.decision.algorithm import Decision
from unroll.agents.ppo.algorithm import PPO
from unroll.configs.fields import RunConfig
from unroll.errors import CheckpointError

if __name__ == "agents":
    raise ImportError("this folder is the package unroll.agents: import unroll.agents")

if TYPE_CHECKING:
    from unroll.agents.decision.agent import DecisionAgent as DecisionAgent
    from unroll.agents.ppo.agent import RecurrentPPO as RecurrentPPO

__all__ = ["AGENTS", "Algorithm", "DecisionAgent", "RecurrentPPO", "algorithm_of", "load", "schemas"]

AGENTS: dict[str, Algorithm] = {
    "decision": Decision(),
    "ppo": PPO(),
}

_CLASSES = {"DecisionAgent": "unroll.agents.decision.agent", "RecurrentPPO": "unroll.agents.ppo.agent"}


def __getattr__(name: str) -> Any:
    """Import an agent on its first use: PyTorch takes seconds, and a wrong argument is told in less."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_CLASSES[name]), name)


def schemas() -> dict[str, type[RunConfig]]:
    """The config class of each agent, by the agent's name."""
    return {name: algorithm.config for name, algorithm in AGENTS.items()}


def algorithm_of(checkpoint: Path) -> Algorithm:
    """Find the algorithm whose agent a checkpoint holds.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds an agent that is not known here.
    """
    from unroll.agents.common.checkpoint import read_state

    agent = read_state(checkpoint).get("agent")
    for algorithm in AGENTS.values():
        if algorithm.agent == agent:
            return algorithm
    known = ", ".join(algorithm.agent for algorithm in AGENTS.values())
    raise CheckpointError(f"{checkpoint}: holds an agent {agent!r}, where {known} are known")


def load(path: str | Path, device: str = "auto") -> Any:
    """Load the agent of a run folder (its last checkpoint), a checkpoint or ``zoo:NAME``, ready to ``predict``.

    A backbone or an environment of your own must be imported first: a file never names code to run.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    from unroll.agents.common.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(path)
    return algorithm_of(checkpoint).load(checkpoint, device)
