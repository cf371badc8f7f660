"""Configuration: typed dataclasses ← YAML files ← flags.

A file holds only what differs from the defaults, and names no code. Nothing here knows which agents there are.
"""

if __name__ == "configs":
    raise ImportError("this folder is the package unroll.configs: import unroll.configs")

from unroll.configs.fields import BackboneConfig, RunConfig
from unroll.configs.loading import flat, load_config, load_saved, plain_config, read_config, save_config, train_parser
from unroll.configs.parser import Parser

__all__ = [
    "BackboneConfig",
    "Parser",
    "RunConfig",
    "flat",
    "load_config",
    "load_saved",
    "plain_config",
    "read_config",
    "save_config",
    "train_parser",
]
