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
from unroll.agents.common.distributed import world


@functools.cache
def machine() -> str:
    """The processor, its cores and the versions that matter, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if "model name" in line:
                cpu = line.split(":")[1].strip()
                break
    versions = installed_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "gymnasium", "mujoco"))
    return f"{cpu}, {os.cpu_count()} cores; {named}"


def set_products(precision: str, device: torch.device) -> None:
    """Let CUDA round the factors of float32 products to TF32, or not; a CPU computes in float32 either way.

    PyTorch has one switch for the whole process, so it is set for each agent that is made.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def products_are_rounded() -> bool:
    """Whether float32 products are rounded to TF32 or bfloat16 somewhere in this process.

    PyTorch's older question, get_float32_matmul_precision, raises an error where its newer switches were set.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return any(backend.fp32_precision in ("tf32", "bf16") for backend in backends)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def made_here(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside config and data, for a checkpoint."""
    return {
        "versions": installed_versions(),
        "machine": machine(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "ranks": world.size,
    }


def not_as_made(state: dict[str, Any], device: torch.device) -> str | None:
    """Say why a run that goes on here from a checkpoint will not have the same bits; None: it will."""
    here = made_here(device)
    differing = []
    for what in ("threads", "ranks", "machine", "device"):
        # checkpoints have named their device since version 0.2
        if state.get(what, here[what]) != here[what]:
            differing.append(f"{what} {state.get(what)}, here {here[what]}")
    if not differing:
        return None
    return f"note: saved under {'; '.join(differing)}: it goes on, but not to the same bits"


def count_parameters(agent: Any) -> int:
    """Count the learned numbers of an agent's policy: backbone, embedding and heads."""
    return sum(parameter.numel() for parameter in agent.policy.parameters())


def peak_memory_mb(agent: Any) -> float:
    """The most memory that this process has had so far, in 10⁶ bytes; 0 where the system does not say.

    It is the GPU's where the agent is on one. Else it is that of the whole process, with interpreter, libraries and
    dataset.
    """
    if agent.device.type == "cuda":
        return torch.cuda.max_memory_allocated(agent.device) / 1e6
    # getrusage's number outlives the start of another program: at least that of unroll compare, which may have trained.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
