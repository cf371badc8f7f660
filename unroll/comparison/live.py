"""What the terminal shows while a grid runs: a table that is drawn anew, or a line for each cell that ends."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unroll.comparison.grid import Cell
from unroll.comparison.workers import Workers


class Show:
    """A display of what workers do, for ``with``. Calling it brings it up to date."""

    def __init__(self, workers: Workers, console: Console):
        self.workers = workers
        self.console = console
        self.said = {cell for cell in workers.cells if cell.finished}
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Show:
        if self.said:
            self.console.print(f"{len(self.said)} of {len(self.workers.cells)} runs were finished before")
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def __call__(self) -> None:
        for cell in self.workers.cells:
            ended = cell.finished or cell in self.workers.failed
            if ended and cell not in self.said:
                self.said.add(cell)
                self._say(cell)
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)

    def _say(self, cell: Cell) -> None:
        """Print the line of a cell that has ended."""
        cells = self.workers.cells
        done = sum(other.finished for other in cells)
        state = f"finished, {done} of {len(cells)}"
        if cell in self.workers.failed:
            state = f"failed: {self.workers.failed[cell]}"
        self.console.print(f"{cell.name}: {state}{self._time_left()}")

    def table(self) -> Table:
        """Make a table with a row for each experiment and backbone, and a column for each seed."""
        cells = self.workers.cells
        seeds = sorted({cell.seed for cell in cells})
        table = Table(title=f"{self.workers.progress():.1f} of {len(cells)} runs{self._time_left()}")
        for name in ("experiment", "backbone"):
            table.add_column(name)
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")

        # Every combination has a cell for each seed.
        rows: dict[tuple[str, str], dict[int, Cell]] = {}
        for cell in cells:
            rows.setdefault((cell.experiment, cell.backbone), {})[cell.seed] = cell
        for (experiment, backbone), row in rows.items():
            table.add_row(experiment, backbone, *(self._state(row[seed]) for seed in seeds))
        return table

    def _state(self, cell: Cell) -> Text:
        if cell in self.workers.failed:
            return Text("failed", "red")
        if cell.finished:
            return Text("done", "green")
        progress = cell.progress
        if cell in self.workers.running or cell.busy:
            return Text(f"{progress:.0%}", "yellow")
        if progress:
            return Text(f"{progress:.0%}", "dim")
        return Text("–", "dim")

    def _time_left(self) -> str:
        """Return the end of a line: how much time is left, if that is known."""
        left = self.workers.seconds_left()
        if left is None:
            return ""
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f", about {hours} h {minutes} min left"
        return f", about {minutes} min {seconds} s left"
