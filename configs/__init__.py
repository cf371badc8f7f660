"""Configuration: typed dataclasses ← YAML files ← flags. A file holds only what differs from the defaults and names
no code."""

from unroll.agents.decision.config import EvaluationConfig, TrainConfig
from unroll.agents.ppo.config import PPOConfig
from unroll.configs.fields import BackboneConfig
from unroll.configs.loading import (
    RESUMABLE,
    Config,
    check_targets,
    load_config,
    load_saved,
    plain_config,
    read_config,
    save_config,
    train_parser,
)
from unroll.configs.parser import Parser

__all__ = [
    "RESUMABLE",
    "BackboneConfig",
    "Config",
    "EvaluationConfig",
    "PPOConfig",
    "Parser",
    "TrainConfig",
    "check_targets",
    "load_config",
    "load_saved",
    "plain_config",
    "read_config",
    "save_config",
    "train_parser",
]
