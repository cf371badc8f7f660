"""The options of a backbone: its constructor's arguments with their defaults, and one line for a wrong one."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from policies.backbones.backbone import Backbone, BackboneError, Mixer, ResidualStack

SIZES = ("d_model", "n_layers")
MOST = 1 << 24  # no option counts anything that is more
KINDS = {bool: "a bool", int: "an int", float: "a finite float", str: "a str"}


def defaults_of(cls: type[Mixer] | type[Backbone]) -> dict[str, Any]:
    """The options of a backbone's class, and those of the stack around a Mixer, with their defaults."""
    return {
        parameter.name: parameter.default
        for constructor in _constructors(cls)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.default is not parameter.empty and parameter.name not in SIZES
    }


def check_options(name: str, cls: type[Mixer] | type[Backbone], options: dict[str, Any]) -> None:
    """Raise BackboneError for an option that does not exist, is not of its type (bool, int, float, str) or not one of
    its choices (``Literal``). Options of other types are the constructor's own concern."""
    known = defaults_of(cls)
    kinds = {option: type(default) for option, default in known.items()} | _annotations(cls)
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(f"{key}={default}" for key, default in known.items()) or "none"
            raise BackboneError(f"backbone {name} has no option {option!r}{suggest(option, known)}; it has {listed}")
        wanted = misfit(kinds[option], value)
        if not wanted and isinstance(value, int | float) and abs(value) > MOST:
            wanted = f"at most {MOST:,}, not {value:,}"
        if wanted:
            raise BackboneError(f"backbone {name}: option {option} is {wanted}")


def suggest(name: Any, known: Iterable[Any]) -> str:
    """ " (did you mean …?)" where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(str(name), [str(word) for word in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def misfit(kind: Any, value: Any) -> str:
    """What an option of this kind is, and the value is not; empty where the value fits, or the kind is another."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return ""
        return f"one of {', '.join(map(str, choices))}, not {value!r}{suggest(value, choices)}"
    if kind not in KINDS:
        return ""
    fits = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (kind is float and not math.isfinite(value)):
        return f"{KINDS[kind]}, not {value!r}"
    return ""


def _constructors(cls: type[Mixer] | type[Backbone]) -> list[type]:
    return [cls, ResidualStack] if issubclass(cls, Mixer) else [cls]


def _annotations(cls: type[Mixer] | type[Backbone]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for constructor in _constructors(cls):
        try:
            hints |= get_type_hints(constructor.__init__)  # type: ignore[misc]
        except Exception:  # any text may be an annotation, or a name that is imported for type checkers alone
            continue
    return hints
