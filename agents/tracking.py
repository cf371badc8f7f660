"""Weights & Biases beside TensorBoard: what is written to the run's event files goes there as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNREACHABLE = 30  # seconds to wait for the server at the start
FINISH = 60  # and for what is still to be sent at the end; it stays on the disk, for wandb sync


class TrackingError(ValueError):
    """Weights & Biases cannot be used; the message is one line for the user."""


@contextlib.contextmanager
def tracked(run: Path, config: dict[str, Any]) -> Iterator[None]:
    """Follow the event files that are made in ``run`` from now on. A run that goes on is the same one there: its id is
    in the names of the folders that wandb keeps in ``run``. Project, entity and mode are those of wandb's environment
    variables; the project is unroll by default.

    Raises:
        TrackingError: wandb is not installed, or its server cannot be reached or knows no such user.
    """
    try:
        import wandb
    except ImportError:
        raise TrackingError("--track wandb needs wandb: pip install -e '.[wandb]'") from None
    known = sorted((run / "wandb").glob("*run-*-*"))
    settings = wandb.Settings(init_timeout=UNREACHABLE, finish_timeout=FINISH)
    if not settings.project:
        settings.project = "unroll"
    try:
        wandb.init(
            name="/".join(run.absolute().parts[-3:]),
            id=known[-1].name.rpartition("-")[2] if known else None,
            resume="allow",
            config=config,
            dir=run,
            sync_tensorboard=True,
            settings=settings,
        )
    except wandb.Error as error:
        why = " ".join(str(error).split())
        raise TrackingError(f"--track wandb: {why}; WANDB_MODE=offline keeps it in {run} for wandb sync") from None
    try:
        yield
    finally:
        wandb.finish()
