"""Learning that cannot begin or cannot go on says why in one line: memory, numbers that are not finite, devices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from unroll.envs.datasets.store import machine_memory
from unroll.errors import TrainingError

FLOAT32 = 4  # bytes
COPIES = 4  # of every weight: itself, its gradient and Adam's two moments


class Sized(Protocol):
    """An agent with the names of its attributes and ``policy_kwargs`` that decide how much memory learning takes.

    The first one is the one to halve.
    """

    @property
    def sized_by(self) -> tuple[str, ...]: ...


def check_device(device: str | torch.device) -> None:
    """Raise TrainingError for a GPU that is not there, where Stable-Baselines3 would quietly take the CPU.

    So it does for a device that PyTorch does not know.
    """
    try:
        torch.device("cpu" if device == "auto" else device)
    except RuntimeError:
        raise TrainingError(f"device {device}: PyTorch knows no such device; use auto, cpu or cuda") from None
    if device == "auto" or torch.device(device).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise TrainingError(f"device {device}: PyTorch finds no CUDA device here; use auto or cpu")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")


def check_finite(metrics: Mapping[str, Any], when: str, learning_rate: float) -> None:
    """Raise TrainingError for the first of the numbers that is NaN or infinite. A number on CUDA is waited for."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(not_finite(f"{name} became {float(value)}", when, learning_rate))


def not_finite(what: str, when: str, learning_rate: float) -> str:
    """The line that says what is not finite, and what to do."""
    return f"{what} {when}, learning rate {learning_rate:.3g}: lower the learning rate or max_grad_norm"


@contextlib.contextmanager
def memory_guard(agent: Sized) -> Iterator[None]:
    """Turn memory that does not suffice into a TrainingError that names the agent's sizes.

    Nothing is tried again with smaller ones: what is learned would depend on it. Linux may also end a process that
    takes too much of the machine's memory by signal 9, and then nothing can be said.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if "CUDA" in str(error) or "HIP" in str(error) else "the CPU"
        known = vars(agent).get("policy_kwargs", {}) | vars(agent)
        sizes = [f"{name} {known[name]}" for name in agent.sized_by if known.get(name) is not None]
        what = f"out of memory on {where} with {' × '.join(sizes)}"
        raise TrainingError(f"{what}: halve {agent.sized_by[0]}, or else another of these") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether NumPy, Python or PyTorch ran out of memory.

    PyTorch has an exception of its own for the memory of a GPU alone.
    """
    if isinstance(error, TrainingError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(text in str(error) for text in said)


def check_budget(parameters: int, other: dict[str, int], device: torch.device) -> None:
    """Raise TrainingError where an agent needs more memory than the device can ever have.

    It is counted before anything is allocated: weights, gradients and moments of ``parameters`` numbers, and the
    ``other`` bytes, by what decides about them.
    """
    needs = {
        f"d_model, n_layers and options, or match_parameters, {parameters:,} parameters": parameters * FLOAT32 * COPIES
    } | other
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory
    else:
        room = machine_memory()
    if sum(needs.values()) > room:
        most = max(needs, key=needs.__getitem__)
        larger = f"{_gib(needs[most])} GiB for {most}, and {device} has {_gib(room)} GiB in all"
        raise TrainingError(f"too large: {larger}; make that smaller")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.0f}" if count >= 10 * 2**30 else f"{count / 2**30:.1f}"
