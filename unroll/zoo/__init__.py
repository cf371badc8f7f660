"""Trained runs that come with the package, ``zoo:CONFIG/BACKBONE``: small, and without what going on would need.

Each folder holds a run's ``config.yaml`` and its last checkpoint. README.md says what each one reaches.
"""

from __future__ import annotations

import os
from pathlib import Path

from unroll.errors import CheckpointError

PREFIX = "zoo:"
FOLDER = Path(__file__).parent


def zoo_names() -> list[str]:
    """List the runs of the zoo, each as CONFIG/BACKBONE."""
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*/config.yaml"))


def is_zoo(run: object) -> bool:
    """Tell whether this names a run of the zoo, and not a folder."""
    return isinstance(run, str | os.PathLike) and os.fspath(run).startswith(PREFIX)


def find_run(run: str | Path) -> Path:
    """Return the folder of a run: of the zoo, or the user's own.

    Raises:
        CheckpointError: the zoo has no such run.
    """
    if not is_zoo(run):
        return Path(run)
    name = os.fspath(run).removeprefix(PREFIX)
    if name not in zoo_names():
        listed = ", ".join(PREFIX + one for one in zoo_names())
        raise CheckpointError(f"{os.fspath(run)}: no such run in the zoo; there are {listed}")
    return FOLDER / name


def results_folder(run: str | Path, folder: Path) -> Path:
    """Return where to write what is made of a run: into its ``folder``, or below runs/zoo for a run of the zoo.

    Nothing is ever written into the package.
    """
    if not is_zoo(run):
        return folder
    results = Path("runs", "zoo", os.fspath(run).removeprefix(PREFIX))
    results.mkdir(parents=True, exist_ok=True)
    return results
