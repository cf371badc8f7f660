"""Run the cells of a grid, several at a time, beside other processes that run the same grid."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from unroll.comparison.grid import Cell
from unroll.comparison.launch import python_command, python_environment

POLL = 0.5  # seconds between two looks at the processes


class Stopped(Exception):
    """A signal stopped the work; what ran was told to save."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Workers:
    """``jobs`` processes of train.py at a time, until no cell is left. ``failed`` maps cells to the line that says why.

    Every cell is a run folder with a lock, which its process holds while it lives. Whoever finds a cell neither
    finished nor locked takes it: so any number of commands on machines that share a disk divide a grid among them, and
    a cell whose process died is taken again.
    """

    def __init__(self, cells: list[Cell], jobs: int):
        self.cells, self.jobs = cells, jobs
        self.failed: dict[Cell, str] = {}
        self.done_here: list[Cell] = []
        self.again: set[Cell] = set()
        self.running: dict[Cell, tuple[subprocess.Popen, IO[bytes]]] = {}
        self.started = time.monotonic()
        self.done_before = self.progress()

    def run(self, watch: Callable[[], None]) -> None:
        """Work until every cell is finished, here or elsewhere, or has failed; ``watch()`` is called again and again.

        Raises:
            Stopped: by Ctrl-C or SIGTERM; the runs have saved and can go on.
        """
        with hear_signals() as received:
            while True:
                self._collect()
                if received:
                    self._stop(watch)
                    raise Stopped(received[0])
                open_cells = [cell for cell in self.cells if not cell.finished and cell not in self.failed]
                free = (cell for cell in open_cells if cell not in self.running and not cell.busy)
                while len(self.running) < self.jobs and (cell := next(free, None)):
                    self._start(cell)
                watch()
                if not open_cells and not self.running:
                    return
                time.sleep(POLL)

    def _start(self, cell: Cell) -> None:
        arguments = cell.command()
        if "--resume" not in arguments:
            cell.clear()
        errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        threads = {"OMP_NUM_THREADS": str(cell.config.threads)} if cell.config.threads else {}
        process = subprocess.Popen(
            [*python_command("train"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=python_environment() | threads,
            start_new_session=True,  # Ctrl-C reaches it through us alone, once
        )
        self.running[cell] = process, errors

    def _collect(self) -> None:
        """Take leave of the processes that ended."""
        for cell, (process, errors) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[cell]
            with errors:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
            if cell.finished:
                self.done_here.append(cell)
            elif cell not in self.again and any("is not empty; " in line for line in lines):
                self.again.add(cell)  # another command began it while ours started, and died: its run goes on
            elif not cell.busy:  # else another command was faster
                nowhere = "no evaluation, for want of an environment; --evaluation.env names one"
                why = lines[-1].removeprefix("unroll train: ") if lines else "no message"
                self.failed[cell] = nowhere if process.returncode == 0 else f"exit code {process.returncode}: {why}"

    def _stop(self, watch: Callable[[], None]) -> None:
        for process, _ in self.running.values():
            process.send_signal(signal.SIGTERM)
        while any(process.poll() is None for process, _ in self.running.values()):
            watch()
            time.sleep(POLL)

    def progress(self) -> float:
        """Cells that are done, parts of cells included."""
        return sum(cell.progress for cell in self.cells)

    def seconds_left(self) -> float | None:
        """At the pace since this command began; None: nothing has been done since."""
        done = self.progress()
        if done <= self.done_before:
            return None
        left = len(self.cells) - len(self.failed) - done
        return max(0.0, left) * (time.monotonic() - self.started) / (done - self.done_before)


@contextlib.contextmanager
def hear_signals() -> Iterator[list[int]]:
    """The list of Ctrl-C and SIGTERM that came meanwhile; a second one ends the program."""
    received: list[int] = []

    def hear(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    old = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
