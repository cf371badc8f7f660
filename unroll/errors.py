"""The errors that a command shows as one line: what was wrong, where, and what would be right."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend. The message is one line; a command prints it and ends with exit code 2."""


class BackboneError(UserError):
    """A backbone that does not exist, or an option or a size that it does not have."""


class CheckpointError(UserError):
    """A checkpoint or a run folder that is missing, damaged, in use or of another model."""


class FormatError(CheckpointError):
    """A checkpoint in the format of another version, as all others of its run are."""


class ComparisonError(UserError):
    """Runs that are missing, damaged or not comparable."""


class DatasetError(UserError):
    """A dataset that cannot be found, read, written or trained on."""


class EnvError(UserError):
    """An environment that cannot be made, played in, or shown as asked.

    ``details`` is the traceback where an exception of the environment's own code is behind it.
    """

    details: str = ""


class ExportError(UserError):
    """A policy that cannot be exported, or a folder that does not hold an export."""


class HyperparameterError(UserError, AssertionError):
    """Hyperparameters that do not fit together. It is also what Stable-Baselines3 raises for them."""


class ShareError(UserError):
    """A run that cannot be shared, or a repository that holds no run."""


class TrackingError(UserError):
    """An experiment tracker that cannot be used."""


class TrainingError(UserError):
    """Learning that cannot begin or cannot go on."""


def one_line(error: object, most: int = 300) -> str:
    """The message of an exception (or any text) on one line, cut after ``most`` characters.

    Other libraries write several lines, or nothing: then it is the name of the exception's class.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__
