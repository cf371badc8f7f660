"""One recurrence with three bodies: PyTorch (reference.py), numba on the CPU (cpu.py) and Triton on CUDA (cuda.py)."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

BACKENDS = ("auto", "reference", "cpu", "cuda")
PACKAGES = {"cpu": "numba", "cuda": "triton"}


def choose_body(backend: str, x: Tensor) -> str:
    """Choose which body computes on x, and load it so that the operators can be called.

    ``auto`` chooses the kernels of x's device if they can be used. It chooses the reference for float64 and
    complex numbers, under ``torch.func`` and in exports.

    Raises:
        ValueError: The backend is unknown, or cannot compute on x here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown scan backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    device = x.device.type
    # the kernels compute in float32
    is_too_much = x.dtype == torch.float64 or x.is_complex()

    if backend == "auto":
        needs_reference = is_too_much or is_transformed() or torch.compiler.is_exporting()
        if not needs_reference and device in PACKAGES and why_not(device) is None:
            return device
        return "reference"

    if backend != "reference":
        if device != backend or is_too_much:
            raise ValueError(
                f"scan backend {backend!r} takes tensors up to float32 on {backend}, not {x.dtype} on {device}"
            )
        reason = why_not(backend)
        if reason is not None:
            raise ValueError(f"scan backend {backend!r} cannot be used: {reason}")
    return backend


def is_transformed() -> bool:
    """Check for forward derivatives and ``torch.func``, under which a custom operator would silently give zeros."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def why_not(device: str) -> str | None:
    """Say why the kernels for a type of device cannot be used, and log it once; None means that they can."""
    module, reason = load(device)
    if module is not None:
        reason = module.why_not()
    if reason is not None:
        _log_once(device, reason)
    return reason


# This is what torch.compiler.assume_constant_result does. Calling that imports the compiler, which takes a second.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def load(device: str) -> tuple[ModuleType | None, str | None]:
    """Import the kernels for a type of device, which registers them. Returns the module, or why there is none."""
    try:
        return importlib.import_module(f"{__name__}.{device}"), None
    except (ImportError, OSError, RuntimeError) as error:
        # numba raises a RuntimeError if it finds no folder for its cache
        return None, f"{PACKAGES[device]}: {error}"


@functools.cache
def _log_once(device: str, reason: str) -> None:
    logging.getLogger("unroll").warning(
        "no fast kernel for recurrences on %s, so they run step by step in PyTorch, several times slower (%s)",
        device,
        reason,
    )
