"""The errors that a command shows as one line: what was wrong, where, and what would be right."""

from agents.checkpoint import CheckpointError
from agents.guards import TrainingError
from agents.ppo import HyperparameterError
from agents.tracking import TrackingError
from envs.datasets import DatasetError
from envs.make import EnvironmentError
from policies.backbones import BackboneError

USER_ERRORS = (
    BackboneError,
    CheckpointError,
    DatasetError,
    EnvironmentError,
    HyperparameterError,
    TrackingError,
    TrainingError,
)
