"""What Python code gives an agent, settled by its annotation: what JSON cannot hold is converted, or refused."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from unroll.errors import HyperparameterError


def settle_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settle arguments by the annotations of a function, or of a dataclass, as its fields of the same names.

    One that it does not know is left for it to refuse.

    Raises:
        HyperparameterError: a value is not what its annotation says.
    """
    kinds = get_type_hints(function)
    return {name: settle(name, kinds.get(name), value) for name, value in arguments.items()}


def settle_fields(instance: Any) -> None:
    """Settle the fields of a dataclass by their annotations.

    Raises:
        HyperparameterError: a value is not what its annotation says.
    """
    kinds = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        setattr(instance, field.name, settle(field.name, kinds[field.name], getattr(instance, field.name)))


def settle(name: str, kind: Any, value: Any) -> Any:
    """Return a value as a bool, int, float, str or choice of its kind; 10.0 is an int, and 1 a bool.

    A value of any other kind, or of several, is returned as it is, but for numbers of NumPy.

    Raises:
        HyperparameterError: the value is not of its kind.
    """
    value = plain(value)
    if get_origin(kind) is types.UnionType:
        kinds = [one for one in get_args(kind) if one is not types.NoneType]
        optional = len(kinds) < len(get_args(kind))
        if len(kinds) > 1 or (optional and value is None):
            return value
        return settle(name, kinds[0], value)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        _require(value in choices, f"{name} is one of {', '.join(choices)}, not {value!r}")
    elif kind is str:
        _require(isinstance(value, str), f"{name} is a str, not {value!r}")
    elif kind is bool:
        _require(isinstance(value, int) and value in (0, 1), f"{name} is a bool, not {value!r}")
        return bool(value)
    elif isinstance(kind, type) and issubclass(kind, int | float):
        return _number(name, kind, value)
    return value


def plain(value: Any) -> Any:
    """Return a number of NumPy, or those in a dict, as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value


def _number(name: str, kind: type, value: Any) -> int | float:
    """Return a value as an int or a finite float, within the bounds of its kind."""
    whole = issubclass(kind, int)
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float):
        fits = value.is_integer() if whole else math.isfinite(value)
    _require(fits, f"{name} is {'an int' if whole else 'a finite float'}, not {value!r}")
    try:
        number = kind(value)
    except (ValueError, OverflowError) as error:  # beyond the bounds, which the message says
        raise HyperparameterError(f"{name}: {error}") from None
    return int(number) if whole else float(number)


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise HyperparameterError(message)
