"""The grid of a comparison: backbones × configs × seeds as runs of ``unroll train``, and how far each has come."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

from unroll.agents import schemas
from unroll.agents.common.checkpoint import checkpoints
from unroll.agents.common.run_folder import LOCK, is_locked, run_lock
from unroll.comparison.runs import Run, read_run, why_unfinished
from unroll.configs import RunConfig, load_config, plain_config
from unroll.configs.loading import flat
from unroll.errors import CheckpointError, ComparisonError

# What a repeated command may change about a run without making it another one. A run that goes on takes it.
MAY_DIFFER = (
    "device",
    "threads",
    "keep",
    "log_every",
    "checkpoint_every",
    "track",
    "evaluation.video",
    "evaluation.n_envs",
    "evaluation.reuse_envs",
)
TAIL = 8192  # bytes at the end of a log that are sure to hold a whole line


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A run of the grid.

    ``config`` is what ``unroll train`` makes of ``arguments``, with its sizes settled. ``named`` are the flags that
    name code of the user's own, which every command line must.
    """

    experiment: str
    backbone: str
    seed: int
    folder: Path
    config: RunConfig
    arguments: list[str]
    named: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.experiment}, {self.backbone}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        path = self.folder / "evaluation.json"
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            return False
        return _scores_the_end(path, written, self.config.agent, self.config.steps)

    @property
    def busy(self) -> bool:
        """Whether a process trains in its folder, of this command or of another one."""
        return is_locked(self.folder)

    @property
    def progress(self) -> float:
        """The share of its steps that its log shows."""
        if self.finished:
            return 1.0
        return min(1.0, last_step(self.folder) / self.config.steps)

    def take(self) -> list[str] | None:
        """Return the arguments of ``unroll train`` for a cell that nobody is at and nobody has finished, else None.

        Both are looked at under the lock: another command may begin the cell, or finish it, at any moment.
        """
        if self.folder.is_dir() and not self._ours():
            return self.command()  # which refuses the folder, and says why
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with run_lock(self.folder, seconds=0):
                if self.finished:
                    return None
                if not checkpoints(self.folder):
                    self.clear()
                return self.command()
        except CheckpointError:
            return None

    def command(self) -> list[str]:
        """Return the arguments of ``unroll train`` that start the run, or go on with it from its last checkpoint."""
        if checkpoints(self.folder):
            values = flat(plain_config(self.config))
            flags = []
            for key in MAY_DIFFER:
                if key not in values:  # of another agent
                    continue
                value = values[key]
                flags += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
            return ["--resume", "true", "--run_dir", str(self.folder), *flags, *self.named]
        return [*self.arguments, "--run_dir", str(self.folder)]

    def clear(self) -> None:
        """Remove what a process left that cannot go on, but for the lock, which whoever clears holds.

        Anything else is left alone, and ``unroll train`` refuses the folder.
        """
        if not self._ours():
            return
        for path in self.folder.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _ours(self) -> bool:
        """Whether its folder is a run's, or empty but for hidden files."""
        is_run = (self.folder / "config.yaml").is_file()
        return is_run or all(path.name.startswith(".") for path in self.folder.glob("*"))

    def check(self) -> None:
        """Raise ComparisonError if the folder holds a run of another config: its results are not thrown away."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return
        saved = load_config(["--config", str(path)], schemas(), f"unroll compare: {path}")
        saved.name_what_changed()
        there = flat(plain_config(saved))
        for key, wanted in flat(plain_config(self.config)).items():
            if key in (*MAY_DIFFER, "experiment"):
                continue
            if there.get(key) != wanted:
                raise ComparisonError(
                    f"{self.folder}: is a run with {key} {json.dumps(there.get(key))}, not {json.dumps(wanted)}; "
                    "another --output, or the flags that it was made with"
                )

    def read(self) -> Run:
        """Read the finished run, under the names that it has in the grid."""
        return dataclasses.replace(read_run(self.folder, self.experiment), backbone=self.backbone)


@functools.cache
def _scores_the_end(path: Path, written: int, agent: str, steps: int) -> bool:
    """Whether the evaluation that was written then is that of a finished run. Who waits asks again and again.

    A damaged one counts: whoever reads the run says what is wrong with it.
    """
    try:
        evaluation = json.loads(path.read_bytes())
    except ValueError:
        return True
    return not isinstance(evaluation, dict) or why_unfinished(path.parent, agent, steps, evaluation) is None


def last_step(folder: Path) -> float:
    """Return the step of the last whole line of metrics.jsonl; 0 if there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0.0

    # The last line may be half written, and the first of these may lack its beginning.
    for line in reversed(lines):
        try:
            return float(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0.0
