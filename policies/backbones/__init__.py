"""Backbones: how a policy remembers. A new one is one file here and one line in ``BACKBONES``."""

from __future__ import annotations

from typing import Any

from policies.backbones.backbone import (
    Backbone,
    BackboneError,
    Mixer,
    ResidualStack,
    State,
    map_state,
    require,
    select_rows,
)
from policies.backbones.gru import GRU
from policies.backbones.lstm import LSTM
from policies.backbones.mamba import Mamba
from policies.backbones.matching import count_parameters, match_parameters
from policies.backbones.mingru import MinGRU
from policies.backbones.minlstm import MinLSTM
from policies.backbones.options import check_options, defaults_of, suggest
from policies.backbones.own import find_own, import_own
from policies.backbones.sharnn import SHARNN
from policies.backbones.transformer import Transformer

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneError",
    "Mixer",
    "State",
    "count_parameters",
    "find_backbone",
    "import_own",
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

MOST_WIDTH, MOST_LAYERS = 1 << 20, 1 << 10  # what is refused before anything of that size is made


def make_backbone(name: str, d_model: int = 128, n_layers: int = 3, **options: Any) -> Backbone:
    """The backbone ``name`` of width ``d_model``: a Mixer inside the shared residual stack, or a Backbone of its own.

    Raises:
        BackboneError: an unknown name or option; the message lists those that exist. A width or depth that is none.
    """
    cls = find_backbone(name)
    for size, value, most in (("d_model", d_model, MOST_WIDTH), ("n_layers", n_layers, MOST_LAYERS)):
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        require(fits, f"backbone {name}: {size} is an int from 1 to {most:,}, not {value!r}")
    check_options(name, cls, options)
    if issubclass(cls, Mixer):
        return ResidualStack(cls, d_model, n_layers, **options)
    return cls(d_model=d_model, n_layers=n_layers, **options)


def options_of(name: str) -> dict[str, Any]:
    """The options of backbone ``name`` with their defaults."""
    return defaults_of(find_backbone(name))


def find_backbone(name: str) -> type[Mixer] | type[Backbone]:
    """The class of a registered backbone, or ``module:Class`` of a module that is imported already (``import_own``)."""
    if ":" in name:
        return find_own(name)
    if name not in BACKBONES:
        raise BackboneError(f"unknown backbone {name!r}{suggest(name, BACKBONES)}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]
