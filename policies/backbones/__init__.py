"""Backbones: how a policy remembers. A new one is one file here and one line in ``BACKBONES``."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any

from policies.backbones.backbone import Backbone, BackboneError, Mixer, ResidualStack, State, map_state, select_rows
from policies.backbones.gru import GRU
from policies.backbones.lstm import LSTM
from policies.backbones.mamba import Mamba
from policies.backbones.matching import match_parameters
from policies.backbones.mingru import MinGRU
from policies.backbones.minlstm import MinLSTM
from policies.backbones.sharnn import SHARNN
from policies.backbones.transformer import Transformer

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneError",
    "Mixer",
    "State",
    "make_backbone",
    "map_state",
    "match_parameters",
    "options_of",
    "select_rows",
]

BACKBONES: dict[str, type[Mixer] | type[Backbone]] = {
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "gru": GRU,
    "lstm": LSTM,
    "sharnn": SHARNN,
    "transformer": Transformer,
    "mamba": Mamba,
}


def make_backbone(name: str, d_model: int = 128, n_layers: int = 3, **options: Any) -> Backbone:
    """The backbone ``name`` of width ``d_model``: a Mixer inside the shared residual stack, or a Backbone of its own.

    Raises:
        BackboneError: an unknown name or option; the message lists those that exist.
    """
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(f"{key}={default}" for key, default in known.items())
            raise BackboneError(f"backbone {name} has no option {option!r}{_suggest(option, known)}; it has {listed}")
        kind = type(known[option])
        fits = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits or (kind is float and not math.isfinite(value)):
            wanted = "finite float" if kind is float else kind.__name__
            raise BackboneError(f"backbone {name}: option {option} is a {wanted}, not {value!r}")
    cls = BACKBONES[name]
    if issubclass(cls, Mixer):
        return ResidualStack(cls, d_model, n_layers, **options)
    return cls(d_model=d_model, n_layers=n_layers, **options)


def options_of(name: str) -> dict[str, Any]:
    """The options of backbone ``name`` with their defaults."""
    if name not in BACKBONES:
        raise BackboneError(f"unknown backbone {name!r}{_suggest(name, BACKBONES)}; there are {', '.join(BACKBONES)}")
    cls = BACKBONES[name]
    constructors = [cls.__init__, ResidualStack.__init__] if issubclass(cls, Mixer) else [cls.__init__]
    return {
        parameter.name: parameter.default
        for constructor in constructors
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
