"""What an agent costs beside time: parameters and memory."""

from __future__ import annotations

import sys
from typing import Any

import torch


def parameters_of(agent: Any) -> int:
    """Learned numbers of its policy: backbone, embedding and heads."""
    return sum(parameter.numel() for parameter in agent.policy.parameters())


def memory_mb(agent: Any) -> float:
    """The most memory that this process has had so far, in 10⁶ bytes: of the GPU where the agent is on one, else of the
    process as a whole, interpreter, libraries and dataset included. 0 where the system does not say."""
    if agent.device.type == "cuda":
        return torch.cuda.max_memory_allocated(agent.device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
