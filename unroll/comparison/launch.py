"""Start one of our commands in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import unroll


def python_command(command: str) -> list[str]:
    """The words that start a command."""
    return [sys.executable, "-m", "unroll", command]


def python_environment() -> dict[str, str]:
    """The environment in which ``python_command`` finds this package, installed or not.

    The package's folder goes last, so that it hides no module of the user's.
    """
    home = str(Path(unroll.__file__).parents[1])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*path, home])}
