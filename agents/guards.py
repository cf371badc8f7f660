"""Learning that cannot go on says why, in one line: a number that is not finite, memory that does not suffice."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class TrainingError(RuntimeError):
    """Learning that cannot go on; the message is one line for the user."""


def check_finite(metrics: Mapping[str, Any], when: str, learning_rate: float) -> None:
    """Raise TrainingError for the first of the numbers that is NaN or infinite. Of one on CUDA the value is waited
    for."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(not_finite(f"{name} became {float(value)}", when, learning_rate))


def not_finite(what: str, when: str, learning_rate: float) -> str:
    return f"{what} {when}, learning rate {learning_rate:.3g}: lower the learning rate or max_grad_norm"


class Sized(Protocol):
    """An agent with the names of its attributes and ``policy_kwargs`` that decide how much memory learning takes; the
    first is the one to halve."""

    @property
    def sized_by(self) -> tuple[str, ...]: ...


S = TypeVar("S", bound=Sized)


def guard_memory(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method of an agent, in which memory that does not suffice is a TrainingError that names the agent's sizes.

    It is never tried again with less: what is learned would depend on it. Linux may as well end a process that takes
    too much of the machine's memory, by signal 9, and then nothing is said.
    """

    @functools.wraps(method)
    def guarded(agent: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(agent, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            where = "the GPU" if "CUDA" in str(error) or "HIP" in str(error) else "the CPU"
            known = vars(agent).get("policy_kwargs", {}) | vars(agent)
            sizes = [f"{name} {known[name]}" for name in agent.sized_by if known.get(name) is not None]
            what = f"out of memory on {where} with {' × '.join(sizes)}"
            raise TrainingError(f"{what}: halve {agent.sized_by[0]}, or else another of these") from error

    return guarded


def is_out_of_memory(error: BaseException) -> bool:
    """Of NumPy or Python, or of PyTorch, which has an exception of its own for a GPU's memory alone."""
    if isinstance(error, TrainingError):
        return False
    said = ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in said)
