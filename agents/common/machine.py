"""The machine that something ran on, and what an agent takes of it."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from unroll.agents.common.checkpoint import installed_versions
from unroll.agents.common.distributed import n_ranks


@functools.cache
def machine() -> str:
    """Processor, cores and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = installed_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "gymnasium", "mujoco"))
    return f"{cpu}, {os.cpu_count()} cores; {named}"


def made_here() -> dict[str, Any]:
    """What the bits of a result depend on beside config and data, for a checkpoint."""
    counts = {"threads": torch.get_num_threads(), "ranks": n_ranks()}
    return {"versions": installed_versions(), "machine": machine(), **counts}


def not_as_made(state: dict[str, Any]) -> str | None:
    """Why a run that goes on here from the checkpoint with this state will not have the same bits; None: it will."""
    here = made_here()
    differing = [
        f"{what} {state.get(what)}, here {here[what]}"
        for what in ("threads", "ranks", "machine")
        if state.get(what) != here[what]
    ]
    if not differing:
        return None
    return f"note: saved under {'; '.join(differing)}: it goes on, but not to the same bits"


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
