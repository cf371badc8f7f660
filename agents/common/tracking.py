"""Weights & Biases beside TensorBoard: what is written to the run's event files goes there as well."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unroll.errors import TrackingError, one_line

# Seconds that the server is given at the start, and what is still to be sent at the end.
INIT_TIMEOUT = 30
FINISH_TIMEOUT = 60


@contextlib.contextmanager
def tracked(run: Path, config: dict[str, Any], tell: Callable[[str], Any]) -> Iterator[None]:
    """Follow the event files that are made in ``run`` from now on, and tell where they are seen.

    A run that goes on is the same one there: its id is in the names of the folders that wandb keeps in ``run``.
    Project, entity and mode are those of wandb's environment variables; without any the project is unroll. What cannot
    be sent stays in ``run``.

    Raises:
        TrackingError: wandb is not installed, or its server cannot be reached or knows no such user.
    """
    try:
        import wandb
    except ImportError:
        raise TrackingError("--track wandb needs wandb: pip install 'unroll-rl[wandb]'") from None

    known = sorted((run / "wandb").glob("*run-*-*"))
    run_id = known[-1].name.rpartition("-")[2] if known else None
    try:
        there = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "unroll"),
            name="/".join(run.absolute().parts[-3:]),
            id=run_id,
            resume="allow",
            config=config,
            dir=run,
            sync_tensorboard=True,
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, silent=True),
        )
    except wandb.Error as error:
        if not known:
            shutil.rmtree(run / "wandb", ignore_errors=True)  # the folder is still a new run's
        why = one_line(error)
        raise TrackingError(f"--track wandb: {why}; with WANDB_MODE=offline it is kept for wandb sync") from None
    tell(there.url or f"to send it to Weights & Biases: wandb sync {Path(there.dir).parent}")

    try:
        yield
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()
