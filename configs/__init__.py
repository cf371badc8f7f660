"""Configuration: typed dataclasses ← YAML files ← flags. A file holds only what differs from the defaults and names
no code."""

from configs.decision_fields import EvaluationConfig, TrainConfig
from configs.fields import BackboneConfig
from configs.loading import (
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
from configs.parser import Parser
from configs.ppo_fields import PPOConfig

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
