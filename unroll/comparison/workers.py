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
# How unroll train refuses a folder that another command has begun to fill.
LOST_RACE = ("is not empty; ", "another process is training in this folder")
NOT_EVALUATED = "no evaluation, for want of an environment; --evaluation.env names one"


class Stopped(Exception):
    """A signal stopped the work. The runs that were under way have been told to save."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Workers:
    """A pool of ``jobs`` processes of ``unroll train``, which takes cells until none is left.

    Every cell is a run folder with a lock, which its process holds while it lives. Whoever finds a cell neither
    finished nor locked takes it. So any number of commands on machines that share a disk divide a grid among them, and
    a cell whose process died is taken again.

    Attributes:
        failed: the cells that failed here and that nobody has finished since, each with a line that says why.
        done_here: the cells that were finished by this command.
        running: the process of each cell that is under way, and its standard error.
    """

    def __init__(self, cells: list[Cell], jobs: int):
        self.cells = cells
        self.jobs = jobs
        self.failed: dict[Cell, str] = {}
        self.done_here: list[Cell] = []
        self.running: dict[Cell, tuple[subprocess.Popen, IO[bytes]]] = {}
        self._raced: set[Cell] = set()
        self._started = time.monotonic()
        self._done_before = self.progress()

    def run(self, watch: Callable[[], None]) -> None:
        """Work until every cell is finished, here or elsewhere, or has failed. ``watch()`` is called again and again.

        Raises:
            Stopped: Ctrl-C or SIGTERM came. The runs have saved and can go on.
        """
        with hear_signals() as received:
            while True:
                self._collect()
                self.failed = {cell: why for cell, why in self.failed.items() if not cell.finished}

                # A signal reaches the runs through us, and they save before they end.
                if received:
                    self._stop(watch)
                    raise Stopped(received[0])

                # Cells may be finished by other commands, so the folders are looked at again each time.
                left = [cell for cell in self.cells if not cell.finished and cell not in self.failed]
                self._start_free(left)
                watch()
                if not left and not self.running:
                    return
                time.sleep(POLL)

    def _start_free(self, left: list[Cell]) -> None:
        """Start cells that nobody is at, as long as there is room."""
        for cell in left:
            if len(self.running) >= self.jobs:
                return
            if cell in self.running:
                continue
            arguments = cell.take()
            if arguments is not None:
                self._start(cell, arguments)

    def _start(self, cell: Cell, arguments: list[str]) -> None:
        environment = python_environment()
        if cell.config.threads:
            environment["OMP_NUM_THREADS"] = str(cell.config.threads)

        # A pipe would have to be read while the run goes on; a file need not.
        errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [*python_command("train"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches it through this command alone, once
        )
        self.running[cell] = (process, errors)

    def _collect(self) -> None:
        """Take the processes that ended off the list, and note what came of them."""
        for cell, (process, errors) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[cell]
            with errors:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
            self._judge(cell, process.returncode, lines)

    def _judge(self, cell: Cell, code: int, lines: list[str]) -> None:
        """Note whether a cell whose process ended with ``code``, after these lines of error, is done or has failed."""
        if cell.finished:
            self.done_here.append(cell)
            return

        # Another command began the cell while ours started. It is at it still, or it has died and the run goes on
        # from where it is: then we take it once more.
        if cell not in self._raced and any(words in line for words in LOST_RACE for line in lines):
            self._raced.add(cell)
            return
        if cell.busy:
            return

        if code == 0:
            self.failed[cell] = NOT_EVALUATED
        elif code < 0:  # the last line is of something that happened before
            self.failed[cell] = f"killed by signal {-code} ({signal.strsignal(-code)})"
        else:
            why = lines[-1].removeprefix("unroll train: ") if lines else "no message"
            self.failed[cell] = f"exit code {code}: {why}"

    def _stop(self, watch: Callable[[], None]) -> None:
        """Tell the runs to save, and wait until they have ended."""
        for process, _ in self.running.values():
            process.send_signal(signal.SIGTERM)
        while any(process.poll() is None for process, _ in self.running.values()):
            watch()
            time.sleep(POLL)

    def progress(self) -> float:
        """Return the number of cells that are done, parts of cells included."""
        return sum(cell.progress for cell in self.cells)

    def seconds_left(self) -> float | None:
        """Estimate the time left at the pace since this command began; None if nothing has been done since."""
        done = self.progress()
        if done <= self._done_before:
            return None
        left = max(0.0, len(self.cells) - len(self.failed) - done)
        seconds = time.monotonic() - self._started
        return left * seconds / (done - self._done_before)


@contextlib.contextmanager
def hear_signals() -> Iterator[list[int]]:
    """Give a list to which every Ctrl-C and SIGTERM is added. A second one ends the program."""
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
