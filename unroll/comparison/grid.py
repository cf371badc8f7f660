"""The grid of a comparison: backbones × configs × seeds as runs of train.py, and how far each has come."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from unroll.agents import schemas
from unroll.agents.common.checkpoint import checkpoints
from unroll.agents.common.run_folder import is_locked
from unroll.comparison.runs import Run, read_run
from unroll.configs import RunConfig, load_config, plain_config
from unroll.configs.loading import flat
from unroll.errors import ComparisonError

MAY_DIFFER = ("device", "threads", "keep", "log_every", "checkpoint_every", "experiment", "track")
MAY_DIFFER_TOO = ("evaluation.video", "evaluation.n_envs", "evaluation.reuse_envs")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of the grid.

    ``config`` is what unroll train makes of ``arguments``, its sizes settled. ``named`` are the flags that name code of
    the user's own, which every command line must.
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
        return (self.folder / "evaluation.json").is_file()

    @property
    def busy(self) -> bool:
        """Whether a process is at it, of this command or of another one."""
        return is_locked(self.folder)

    @property
    def progress(self) -> float:
        """The share of its steps that its log shows."""
        return 1.0 if self.finished else min(1.0, last_step(self.folder) / self.config.steps)

    def command(self) -> list[str]:
        """The arguments of train.py that start the run, or go on with it from its last checkpoint."""
        if checkpoints(self.folder):
            threads = str(self.config.threads)
            return ["--resume", "true", "--run_dir", str(self.folder), "--threads", threads, *self.named]
        return [*self.arguments, "--run_dir", str(self.folder)]

    def clear(self) -> None:
        """Remove what a process left that cannot go on. Anything else is left alone, and train.py refuses it."""
        if (self.folder / "config.yaml").is_file() or all(path.name[0] == "." for path in self.folder.glob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def check(self) -> None:
        """Raise ComparisonError if the folder holds a run of another config: its results are not thrown away."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return
        saved = load_config(["--config", str(path)], schemas(), f"unroll compare: {path}")
        there, wanted = flat(plain_config(saved)), flat(plain_config(self.config))
        for key in wanted:
            if key.split(".")[0] in MAY_DIFFER or key in MAY_DIFFER_TOO:
                continue
            if there.get(key) != wanted[key]:
                raise ComparisonError(
                    f"{self.folder}: is a run with {key} {json.dumps(there.get(key))}, not {json.dumps(wanted[key])}; "
                    "another --output, or the flags that it was made with"
                )

    def read(self) -> Run:
        return dataclasses.replace(read_run(self.folder, self.experiment), backbone=self.backbone)


def last_step(folder: Path) -> float:
    """The step of the last whole line of metrics.jsonl."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0.0
