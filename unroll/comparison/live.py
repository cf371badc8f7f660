"""What the terminal shows while a grid runs: a table that is drawn anew, or a line for each cell that ends."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unroll.comparison.grid import Cell
from unroll.comparison.workers import Workers


class Show:
    """To be used in a ``with``, and called again and again."""

    def __init__(self, workers: Workers, console: Console):
        self.workers, self.console = workers, console
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
            if cell not in self.said and (cell.finished or cell in self.workers.failed):
                self.said.add(cell)
                why = self.workers.failed.get(cell)
                done = sum(other.finished for other in self.workers.cells)
                state = f"failed: {why}" if why else f"finished, {done} of {len(self.workers.cells)}"
                self.console.print(f"{cell.name}: {state}{self._time_left()}")
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """A row for each experiment and backbone, with a column for each seed."""
        cells = self.workers.cells
        seeds = sorted({cell.seed for cell in cells})
        table = Table(title=f"{self.workers.progress():.1f} of {len(cells)} runs{self._time_left()}")
        for name in ("experiment", "backbone", *(f"seed {seed}" for seed in seeds)):
            table.add_column(name, justify="left" if name in ("experiment", "backbone") else "right")
        for experiment, backbone in dict.fromkeys((cell.experiment, cell.backbone) for cell in cells):
            row = {cell.seed: cell for cell in cells if (cell.experiment, cell.backbone) == (experiment, backbone)}
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
        return Text(f"{progress:.0%}" if progress else "–", "dim")

    def _time_left(self) -> str:
        left = self.workers.seconds_left()
        if left is None:
            return ""
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f", about {hours} h {minutes} min left" if hours else f", about {minutes} min {seconds} s left"
