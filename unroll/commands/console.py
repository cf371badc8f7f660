"""Where the commands print."""

from __future__ import annotations

import contextlib
import os

from rich.console import Console


class Output(Console):
    """Standard output, line by line as it is given. Where nobody reads it any more, the command goes on without it."""

    def __init__(self, quiet: bool = False):
        super().__init__(markup=False, highlight=False, soft_wrap=True, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Be quiet from here on. Rich itself would end the process, and what it has learned would be lost."""
        self.quiet = True
        # Python flushes standard output when it ends, and what others print goes there too.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())
