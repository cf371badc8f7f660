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
LIMITS = {  # the most bytes of a file with such a name; there are no others
    r"config\.yaml": MB // 16,
    r"metrics\.jsonl": 512 * MB,
    r"evaluation\.json": 64 * MB,
    r"evaluation\.gif": 64 * MB,
    CHECKPOINT + re.escape(MANIFEST): MB // 16,
    CHECKPOINT + re.escape(STATE): 64 * MB,
    CHECKPOINT + re.escape(TENSORS): 16 * 1024 * MB,
    r"events\.out\.tfevents\.[\w.-]+": 1024 * MB,  # holds the name of the machine, and travels on request alone
}


def limit(name: str) -> int | None:
    """The most bytes of a file that travels under this name; None: no such file does."""
    return next((most for form, most in LIMITS.items() if re.fullmatch(form, name, re.ASCII)), None)


def choose(names: Iterable[str], events: bool) -> list[str]:
    """Those of a repository's names that are fetched: of checkpoints the last one's alone."""
    known = [name for name in names if limit(name) and (events or not name.startswith("events"))]
    steps = {name: int(match[1]) for name in known if (match := re.match(CHECKPOINT, name))}
    last = max(steps.values(), default=None)
    return sorted(name for name in known if steps.get(name, last) == last)


def stage(run: Path, folder: Path, best: bool, events: bool) -> None:
    """Copy what travels of ``run`` into the empty ``folder``. The best checkpoint travels as the last one of a run that
    ended there, with its own evaluation.

    Raises:
        ShareError: a process trains in the run, or one of the files is a link.
    """
    if not (run / "config.yaml").is_file():
        raise ShareError(f"{run}: no such run folder, or no config.yaml in it")
    if is_locked(run):
        raise ShareError(f"{run}: a process is training in this folder; share it when that has ended")
    checkpoint = run / "checkpoints" / "best" if best else latest_checkpoint(run)
    of = "_best" if best else ""
    if best and not (run / "evaluation_best.json").is_file():
        raise ShareError(f"{run}: its best checkpoint has not been scored; python evaluate.py {checkpoint} does")
    step = read_checkpoint(checkpoint)[1].get("num_timesteps")
    wanted = {
        "config.yaml": run / "config.yaml",
        "metrics.jsonl": run / "metrics.jsonl",
        "evaluation.json": run / f"evaluation{of}.json",
        "evaluation.gif": run / f"evaluation{of}.gif",
        **{f"checkpoints/step_{step:08d}/{name}": checkpoint / name for name in (MANIFEST, STATE, TENSORS)},
        **({path.name: path for path in run.glob("events.out.tfevents.*")} if events else {}),
    }
    for name, path in wanted.items():
        if path.exists():
            copy(run, path, folder / name)


def copy(run: Path, path: Path, target: Path) -> None:
    """Copy a file of ``run``, unless a link leads to it from inside of the run."""
    inside = [run / part for part in [path.relative_to(run), *path.relative_to(run).parents][:-1]]
    if link := next((part for part in inside if part.is_symlink()), None):
        raise ShareError(
            f"{link}: is a link, and what it leads to may not be yours to share; put the file itself there"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
