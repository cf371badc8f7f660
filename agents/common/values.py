"""Nested plain values as named tensors and JSON, and back, bit for bit and without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as JSON, and copy its tensors, arrays and NumPy numbers into ``tensors``.

    Their names begin with ``name``.

    Raises:
        TypeError: a value that is not plain, under its name.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(np.array(value, order="C", ndmin=1))
        return {"array": name, "shape": list(value.shape), "scalar": isinstance(value, np.generic)}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [split(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: split(part, f"{name}.{key}", tensors) for key, part in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {type(value).__name__} is not plain")


def join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Put together again what ``split`` took apart.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: ``split`` cannot have given this.
    """
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].clone()
    if "array" in value:
        array = tensors[value["array"]].numpy().reshape(value["shape"]).copy()
        return array[()] if value["scalar"] else array
    if "dict" in value:
        return {key: join(part, tensors) for key, part in value["dict"].items()}
    (kind,) = value.keys() & {"list", "tuple"}
    parts = [join(part, tensors) for part in value[kind]]
    return tuple(parts) if kind == "tuple" else parts
