"""A file that a full disk cannot spoil: what cannot be written whole is left out, and the program goes on."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class AppendingFile:
    """A binary file at whose end each ``write`` puts all it is given, at once, or nothing. Where the operating system
    fails (no space, a quota, a broken disk) the first time is a warning of one line, and what was to be written is
    lost; later writes are tried again."""

    def __init__(self, path: Path):
        self.path, self.lost = path, 0
        self.file = path.open("ab", buffering=0)
        self._end = self.file.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        try:
            self._cut()
            rest = data
            while rest:  # of a write that fills the disk a part is written
                rest = rest[self.file.write(rest) :]
            self._end += len(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # then before the next write
                self._cut()
            self._lose(error)

    def _cut(self) -> None:
        """Off with what was written in part."""
        if self.file.seek(0, os.SEEK_END) > self._end:
            self.file.truncate(self._end)

    def flush(self) -> None:
        """Nothing to do: every write is the operating system's at once."""

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:  # of some network disks, which write late
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not self.lost:
            log.warning("%s: %s; training goes on, what cannot be written there is lost", self.path, error.strerror)
        self.lost += 1
