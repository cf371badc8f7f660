"""Environments of the user's own, ``module:id``. Finding one imports nothing: no file can name code to run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import gymnasium as gym

from unroll.errors import EnvError, one_line


def registered_id(name: str) -> str:
    """Return the registered id of ``id``, or of ``module:id`` whose module is imported already.

    Raises:
        EnvError: the module is not imported, or does not register that id.
    """
    module, colon, env_id = name.rpartition(":")
    if not colon:
        return name
    if module not in sys.modules:
        raise EnvError(
            f"environment {name} is not imported, and no file may ask for that: name it on the command line, "
            f"or import {module} first"
        )
    if env_id not in gym.registry:
        raise EnvError(f"environment {name}: {module} registers no {env_id}")
    return env_id


def import_env(name: str) -> str:
    """Import the module of ``module:id`` from the current folder or the installed ones. Return the id.

    For a name from the command line or from code, never for one from a file.

    Raises:
        EnvError: there is no such module, it cannot be imported, or it registers no such id.
    """
    module, _, env_id = name.rpartition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not env_id:
        raise EnvError(f"environment {name!r}: one of your own is module:id, for example my_module:MyEnv-v0")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise EnvError(f"environment {name}: there is no module {module} in this folder, nor installed") from None
        raised = f"importing {module} raised {type(error).__name__}: {one_line(error)}"
        raise EnvError(f"environment {name}: {raised}") from None
    return registered_id(name)
