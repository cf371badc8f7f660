"""What happens while an agent learns: progress is shown, checkpoints are saved, signals are heard."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

from agents.checkpoint import checkpoints


class ShowProgress(BaseCallback):
    """A bar with the loss and the updates per second; one line for every tenth of the run where there is no terminal.
    To be used in a ``with``, so that the terminal is left in order."""

    def __init__(self, total: int, console: Console | None = None):
        super().__init__()
        self.total, self.console = total, console or Console()
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def __enter__(self) -> ShowProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def _on_training_start(self) -> None:
        self.task = self.bar.add_task("training", total=self.total, completed=self.num_timesteps, metrics="")
        if self.console.is_terminal:
            self.bar.start()

    def _on_step(self) -> bool:
        metrics = self.model.last_metrics  # type: ignore[attr-defined]
        text = ""
        if metrics:
            text = f"loss {metrics['train/loss']:.4f}  {metrics['time/updates_per_s']:.1f} updates/s"
        self.bar.update(self.task, completed=self.num_timesteps, metrics=text)
        if not self.console.is_terminal and self.num_timesteps % max(1, self.total // 10) == 0:
            self.console.print(f"update {self.num_timesteps}/{self.total}  {text}")
        return True


class SaveCheckpoints(BaseCallback):
    """Every ``every`` updates and at the end, into ``<run>/checkpoints/step_<n>``; the last ``keep`` are kept."""

    def __init__(self, run: Path, every: int, keep: int):
        super().__init__()
        self.run, self.every, self.keep = run, every, keep

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.save()
        return True

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        path = self.run / "checkpoints" / f"step_{self.model.num_timesteps:08d}"
        if not path.exists():
            self.model.save(path)
        for old in checkpoints(self.run)[: -self.keep]:
            shutil.rmtree(old)


class Every(BaseCallback):
    """Call ``action`` every ``every`` updates, but not at the end of the run."""

    def __init__(self, every: int, total: int, action: Callable[[], Any]):
        super().__init__()
        self.every, self.total, self.action = every, total, action

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0 and self.num_timesteps < self.total:
            self.action()
        return True


class StopOnSignal(BaseCallback):
    """While its ``with`` lasts, Ctrl-C and SIGTERM end the learning after the current update, so that it can be saved;
    a second one ends the program."""

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None

    def __enter__(self) -> StopOnSignal:
        self._old = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        print("stopping after this update; once more to quit at once", file=sys.stderr)

    def _on_step(self) -> bool:
        return self.received is None


def as_callback(callback: Any) -> BaseCallback:
    """What ``learn`` takes as a callback (none, one, a list, a function), as one callback."""
    if callback is None or isinstance(callback, list):
        return CallbackList(callback or [])
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
