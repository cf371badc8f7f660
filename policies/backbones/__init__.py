"""Backbones: the memories of policies. A new one is one file here and one line in ``registry.BACKBONES``."""

from unroll.errors import BackboneError
from unroll.policies.backbones.backbone import Backbone, Mixer, State, map_state, select_rows
from unroll.policies.backbones.matching import count_parameters, match_parameters
from unroll.policies.backbones.registry import BACKBONES, find_backbone, import_own, make_backbone, options_of

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
