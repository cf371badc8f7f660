"""How much memory there is, so that what a file declares can be refused before it is made."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def machine_memory() -> int:
    """Bytes that a process here can have at most: the machine's, or less where a container has less."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        memory = 1 << 40
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return memory


def available_memory() -> int:
    """Bytes of it that can be had without swapping, as the kernel estimates; half where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = machine_memory() // 2
    return min(free, machine_memory())
