"""The files of a run that travel: known by name and bounded in size."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS, latest_checkpoint, read_checkpoint
from unroll.agents.common.run_folder import is_locked
from unroll.errors import ShareError

MB = 2**20
CHECKPOINT = r"checkpoints/step_(\d{1,15})/"

# The form of a name → the most bytes of such a file. No other file travels.
LIMITS = {
    r"config\.yaml": MB // 16,
    r"metrics\.jsonl": 512 * MB,
    r"evaluation\.json": 64 * MB,
    r"evaluation\.gif": 64 * MB,
    CHECKPOINT + re.escape(MANIFEST): MB // 16,
    CHECKPOINT + re.escape(STATE): 64 * MB,
    CHECKPOINT + re.escape(TENSORS): 16 * 1024 * MB,
    r"events\.out\.tfevents\.[\w.-]+": 1024 * MB,  # on request alone: its name holds the name of the machine
}


def limit(name: str) -> int | None:
    """Return the most bytes of a file that travels under this name; None if no such file does."""
    for form, most in LIMITS.items():
        if re.fullmatch(form, name, re.ASCII):
            return most
    return None


def choose(names: Iterable[str], events: bool) -> list[str]:
    """Choose the names in a repository that are fetched: of all checkpoints only those of the last one."""
    # Files of other names stay where they are.
    known = [name for name in names if limit(name) and (events or not name.startswith("events"))]
    steps = {}
    for name in known:
        match = re.match(CHECKPOINT, name)
        if match:
            steps[name] = int(match[1])

    # A file outside of the checkpoints counts as one of the last.
    last = max(steps.values(), default=None)
    return sorted(name for name in known if steps.get(name, last) == last)


def stage(run: Path, folder: Path, best: bool, events: bool) -> None:
    """Copy the files of ``run`` that travel into the empty ``folder``.

    With ``best`` the best checkpoint travels as the last one of a run that ended there, with its own evaluation.

    Raises:
        ShareError: a process trains in the run, or one of the files is a link.
    """
    if not (run / "config.yaml").is_file():
        raise ShareError(f"{run}: no such run folder, or no config.yaml in it")
    if is_locked(run):
        raise ShareError(f"{run}: a process is training in this folder; share it when that has ended")

    if best:
        checkpoint = run / "checkpoints" / "best"
        evaluation = "evaluation_best"
        if not (run / f"{evaluation}.json").is_file():
            raise ShareError(f"{run}: its best checkpoint has not been scored; unroll evaluate {checkpoint} does")
    else:
        checkpoint = latest_checkpoint(run)
        evaluation = "evaluation"

    # The folder of a checkpoint is named by its step, also that of the best one.
    _, state = read_checkpoint(checkpoint)
    travels_as = f"checkpoints/step_{state.get('num_timesteps'):08d}"
    wanted = {
        "config.yaml": run / "config.yaml",
        "metrics.jsonl": run / "metrics.jsonl",
        "evaluation.json": run / f"{evaluation}.json",
        "evaluation.gif": run / f"{evaluation}.gif",
    }
    for name in (MANIFEST, STATE, TENSORS):
        wanted[f"{travels_as}/{name}"] = checkpoint / name
    if events:
        wanted |= {path.name: path for path in run.glob("events.out.tfevents.*")}

    for name, path in wanted.items():
        if path.exists():
            copy(run, path, folder / name)


def copy(run: Path, path: Path, target: Path) -> None:
    """Copy a file of ``run``.

    Raises:
        ShareError: the file is a link, or a folder on the way to it from ``run`` is one.
    """
    part = path.relative_to(run)
    while part.name:  # the run folder itself may be a link
        if (run / part).is_symlink():
            raise ShareError(
                f"{run / part}: is a link, and what it leads to may not be yours to share; put the file itself there"
            )
        part = part.parent
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
