"""Where metrics go: TensorBoard events and, line by line, metrics.jsonl in the run folder. A disk that is full stops
neither the training nor, once there is room again, what is logged then."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.logger import HParam, KVWriter, Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

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


class RunLogger(Logger):
    """Stable-Baselines3's logger for one run folder. A run that goes on at ``first_step`` replaces what came after
    it."""

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        events = Events(folder, first_step)
        super().__init__(str(folder), [events, JsonLines(folder / "metrics.jsonl", first_step)])
        self.writer = events.writer

    def hyperparameters(self, values: dict[str, Any], metrics: list[str]) -> None:
        """Into the run's own events, so that the HParams table shows the run and the last value of ``metrics``."""
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        self.record("hparams", HParam(plain, dict.fromkeys(metrics, 0.0)), exclude=("json",))
        self.dump(0)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self.writer.add_text(tag, markdown, step)

    def gif(self, tag: str, gif: bytes, step: int) -> None:
        write_gif(self.writer, tag, gif, step)


def write_gif(writer: SummaryWriter, tag: str, gif: bytes, step: int) -> None:
    """An animation in the Images tab (torch's add_video writes nothing with moviepy 2)."""
    with Image.open(io.BytesIO(gif)) as image:
        summary = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=gif)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=summary)]), step)


class Events(TensorBoardOutputFormat):
    """Stable-Baselines3's TensorBoard output, with ``purge_step``: points of a run that was cut off are hidden when
    it goes on."""

    def __init__(self, folder: Path, first_step: int):
        # TensorBoard reads the files of a folder by name, which begins with the second that they were made in
        while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None, flush_secs=10)
        self._is_closed = False
        self.writer.flush()
        # the thread that writes would end at the first error, and half a record hides those after it
        events = self.writer._get_file_writer().event_writer
        events._async_writer._writer._writer = AppendingFile(Path(events._file_name))


class JsonLines(KVWriter):
    """One JSON object per dump, with its step, appended and flushed at once."""

    def __init__(self, path: Path, first_step: int = 0):
        if first_step and path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= first_step]
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, path)
        elif not first_step:
            path.write_bytes(b"")
        self.file = AppendingFile(path)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        numbers = {
            key: float(value)
            for key, value in key_values.items()
            if isinstance(value, bool | int | float | np.number) and "json" not in (key_excluded.get(key) or ())
        }
        if numbers:
            self.file.write(f"{json.dumps({'step': step} | numbers)}\n".encode())

    def close(self) -> None:
        self.file.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, but for one that a crash cut in half."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in metrics if isinstance(line, dict) and "step" in line]


def _step(line: str) -> float:
    """The step of a line; a line that a crash cut in half comes after all others."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")
