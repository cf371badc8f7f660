"""Fetch one HDF5 file over HTTP, whole or not at all."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import h5py
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from unroll.errors import DatasetError, one_line

TIMEOUT = 30  # seconds without a byte


def download_hdf5(url: str, path: Path) -> None:
    """Download the file at `url` to `path` with a progress bar.

    The file is written beside `path`, compared with the announced size, opened as HDF5, and only
    then renamed.

    Raises:
        DatasetError: the download failed. It leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _fetch(url, temporary, path.name)
        if not h5py.is_hdf5(temporary):
            raise DatasetError(f"{url}: the server sent something else than an HDF5 file")
        h5py.File(temporary, "r").close()  # notices a file that is shorter than its own header says
        os.replace(temporary, path)
    except DatasetError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also the server's answer
        raise DatasetError(f"{url}: download failed ({one_line(error)})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _fetch(url: str, path: Path, label: str) -> None:
    """Write what the server sends, and compare it with the announced size."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    received = 0
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, Progress(*columns, transient=True) as progress:
        size = int(response.headers["Content-Length"] or 0) or None
        task = progress.add_task(label, total=size)
        with path.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                received += len(block)
                progress.update(task, completed=received)
    if size is not None and received != size:
        raise DatasetError(f"{url}: the connection ended after {received} of {size} bytes; try again")
