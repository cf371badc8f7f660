"""What happens while an agent learns: progress is shown, checkpoints are saved, signals are heard."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

from unroll.agents.common.checkpoint import checkpoints
from unroll.agents.common.distributed import world

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class ShowProgress(BaseCallback):
    """A progress bar with what ``describe()`` says and the time left.

    Where there is no terminal it is a line for every tenth of the run.

    Use it in a ``with``, so that the terminal is left in order. ``unit`` is what the agent counts; without ``describe``
    the agent is a DecisionAgent.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        unit: str = "update",
        describe: Callable[[], str] | None = None,
    ):
        super().__init__()
        self.total = total
        self.console = console or Console()
        self.unit = unit
        self.describe = describe or (lambda: describe_updates(self.model))
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
        self._tenth = self._tenths()
        self._first = self.num_timesteps
        self._began = time.monotonic()
        self.task = self.bar.add_task("training", total=self.total, completed=self.num_timesteps, metrics="")
        if self.console.is_terminal:
            self.bar.start()

    def _on_step(self) -> bool:
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.num_timesteps, metrics=self.describe())
        elif self._tenths() > self._tenth:
            self._tenth = self._tenths()
            self.console.print(f"{self.unit} {self.num_timesteps}/{self.total}  {self.describe()}{self._time_left()}")
        return True

    def _time_left(self) -> str:
        """Say how long the rest takes at the speed of this process so far, evaluations included; nothing at the end."""
        left = self.total - self.num_timesteps
        if left <= 0:
            return ""
        seconds = (time.monotonic() - self._began) * left / (self.num_timesteps - self._first)
        return f"  {timedelta(seconds=round(seconds))} left"

    def _tenths(self) -> int:
        return self.num_timesteps // max(1, self.total // 10)


def describe_updates(agent: Any) -> str:
    """Say what a DecisionAgent's last loss is and how fast it learns."""
    metrics = agent.last_metrics
    return f"loss {metrics['train/loss']:.4f}  {metrics['time/updates_per_s']:.1f} updates/s" if metrics else ""


class Every(BaseCallback):
    """Call ``action`` between two updates whenever ``every`` more steps are done, but not at the end; 0: never.

    ``last`` is the step of the call before, if another process made it; None: the step that learning begins at.
    """

    def __init__(self, every: int, action: Callable[[], Any], last: int | None = None):
        super().__init__()
        self.every = every
        self.action = action
        self.last = last

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps if self.last is None else self.last

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        if self.every and steps // self.every > self._last // self.every:
            self.action()
        self._last = steps

    def _on_step(self) -> bool:
        return True


class SaveCheckpoints(Every):
    """Save every ``every`` steps and at the end, into ``<run>/checkpoints/step_<n>`` by ``save(path)``.

    The last ``keep`` are kept, and ``<run>/checkpoints/best``, the one of the highest score so far. A checkpoint that
    cannot be written, on a full disk, is a warning; for the one at the end see ``check``.

    ``best_score`` is that of the best one that there is. ``old_best`` is the name that it gets when there is a new
    one, if its score is that of another evaluation, with which no score is compared.
    """

    def __init__(
        self,
        run: Path,
        every: int,
        keep: int,
        save: Callable[[Path], Any],
        best_score: float | None = None,
        old_best: str | None = None,
    ):
        super().__init__(every, lambda: self._or_warn(self.save))
        self.run = run
        self.folder = run / "checkpoints"
        self.keep = keep
        self.best_score = best_score
        self.old_best = old_best
        self.begun = False
        self.failed: OSError | None = None
        self._save = save

    def _on_rollout_start(self) -> None:
        self.begun = True  # there is something to save
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        try:
            self.save()
        except OSError as error:
            self.failed = error

    def check(self) -> None:
        """Raise OSError if the checkpoint at the end could not be written."""
        if self.failed is not None:
            raise OSError(f"the last checkpoint could not be written ({self.failed}); {last_good(self.run)}")

    def _or_warn(self, save: Callable[[], None]) -> None:
        try:
            save()
        except OSError as error:
            step = self.model.num_timesteps
            log.warning("no checkpoint at %d (%s); training goes on, %s", step, error, last_good(self.run))

    def save(self) -> None:
        """Save the agent as it is now, unless that has been done, and remove what is too old."""
        path = self.folder / f"step_{self.model.num_timesteps:08d}"
        if not path.exists():
            self._save(path)
        for old in checkpoints(self.run)[: -self.keep]:
            shutil.rmtree(old)

    def save_best(self, score: float) -> None:
        """Save the agent as the best one, unless one with that score is kept already."""
        if self.failed is None and (self.best_score is None or score > self.best_score):
            self._or_warn(lambda: self._save_best(score))

    def _save_best(self, score: float) -> None:
        best = self.folder / "best"
        if self.old_best is None or not best.exists():
            self._save(best)
        else:
            # The new one is written first: where the disk is full, the old one stays what it is.
            new = self.folder / "new_best"
            self._save(new)
            best.rename(self.folder / self.old_best)
            new.rename(best)
        self.old_best = None
        self.best_score = score


class WholeUpdates(BaseCallback):
    """Keep in ``packed`` what ``pack()`` gives between two updates, and take a run that is stopped back to there.

    A run may be stopped inside of a rollout or of an update; the agent's ``between_updates`` is False there. Then
    ``restore(packed)`` makes it what an undisturbed run was, so that what is saved is the same. The metrics of an
    update are logged at its own step, where Stable-Baselines3 would log them with the rollout after it.
    """

    def __init__(self, pack: Callable[[], Any], restore: Callable[[Any], Any]):
        super().__init__()
        self._pack = pack
        self._restore = restore
        self.packed: Any = None

    def _on_rollout_start(self) -> None:
        self._take()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.between_updates:  # type: ignore[attr-defined]
            self._take()
        else:
            self._restore(self.packed)

    def _take(self) -> None:
        if not self.model.logs_now:  # type: ignore[attr-defined]
            for recorded in (self.logger.name_to_value, self.logger.name_to_count, self.logger.name_to_excluded):
                recorded.clear()
        elif self.logger.name_to_value:
            self.logger.dump(self.num_timesteps)
        self.packed = self._pack()


class Stopped(BaseException):
    """A signal, raised in the middle of what can be left at once."""


def last_good(run: Path) -> str:
    """Say what is left of a run that cannot be saved."""
    saved = checkpoints(run)
    return f"{saved[-1]} is intact" if saved else "no checkpoint was written before"


class StopOnSignal(BaseCallback):
    """End the learning after the current step at Ctrl-C and SIGTERM, while its ``with`` lasts, so that it can be saved.

    A second signal ends the program. One of several processes that fails no longer hears signals: torchrun sends
    SIGTERM when another one has died, and it must not end this one before it has said why.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        self._at_once = False

    def __enter__(self) -> StopOnSignal:
        self._old = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        failed = error[0] is not None and world.size > 1
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_IGN if failed else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if world.size > 1:
            # torchrun passes on what each process has already had. All processes stop after the same step.
            signal.signal(number, signal.SIG_IGN)
        else:
            signal.signal(number, signal.SIG_DFL)
            if hasattr(self, "model"):
                self.model.interrupted = True  # type: ignore[attr-defined]
        if world.rank == 0:
            print("stopping after this step; once more to quit at once", file=sys.stderr)
        if self._at_once:
            self._at_once = False
            raise Stopped

    def unless_stopped(self, action: Callable[[], Result], at_once: bool = True) -> Result | None:
        """Do ``action()`` and return its result; None if a signal came before it or ends it.

        The action is left wherever it is, so it must be one that loses nothing. With ``at_once`` False it is left only
        where it calls ``leave_if_stopped``.
        """
        if self.received is not None:
            return None
        try:
            self._at_once = at_once
            return action()
        except Stopped:
            return None
        finally:
            self._at_once = False

    def leave_if_stopped(self) -> None:
        """Leave the action of ``unless_stopped`` if a signal came."""
        if self.received is not None:
            raise Stopped

    def _on_step(self) -> bool:
        # Several processes ask each other every few steps alone, and all of them stop after the same one.
        if world.size > 1 and self.n_calls % getattr(self.model, "agree_every", 1):
            return True
        heard = world.any(self.received is not None)
        if heard and self.received is None:
            self.received = signal.SIGTERM
        return not heard


def as_callback(callback: Any) -> BaseCallback:
    """Make one callback of what ``learn`` takes: none, one, a list, a function."""
    if callback is None or isinstance(callback, list):
        return CallbackList(callback or [])
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
