"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and rename it to ``path`` at the end.

    Whoever reads ``path`` sees the old file or the whole new one. Where writing fails nothing is left; a process that
    is killed leaves the temporary name, ``.<name>.<process id>``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write text (as UTF-8) or bytes to ``path``, whole or not at all.

    Raises:
        OSError: one that names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:  # of a full disk it names no file, and of a folder the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error
