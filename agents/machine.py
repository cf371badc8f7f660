"""The machine that something ran on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from agents.checkpoint import installed_versions


def machine() -> str:
    """Processor, cores and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = installed_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "gymnasium", "mujoco"))
    return f"{cpu}, {os.cpu_count()} cores; {named}"
