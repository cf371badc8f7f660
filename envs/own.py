"""Environments of the user's own, ``module:id``. Finding one imports nothing: no file can name code to run."""

from __future__ import annotations

import sys

import gymnasium as gym

from unroll.errors import EnvError


def registered_id(name: str) -> str:
    """The registered id of ``id``, or of ``module:id`` whose module is imported already.

    Raises:
        EnvError: the module is not imported, or does not register that id.
    """
    module, colon, env_id = name.rpartition(":")
    if not colon:
        return name
    if module not in sys.modules:
        raise EnvError(
            f"environment {name} is not imported, and no file may ask for that: name it on the command line "
            f"(--env {name}), or import {module} first"
        )
    if env_id not in gym.registry:
        raise EnvError(f"environment {name}: {module} registers no {env_id}")
    return env_id
