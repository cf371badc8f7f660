"""Where metrics go: TensorBoard events and, line by line, metrics.jsonl in the run folder.

A full disk does not stop the training. What could not be written is lost, and once there is room again the log goes on.
"""

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
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from unroll.files import write_whole

log = logging.getLogger(__name__)
ANEW = "eval/anew"  # a line of metrics.jsonl: scores after it are not those of the evaluation before it
FIRST_OF_ALL = -(2**63)  # no step is before this one; those of a pretraining are negative


class AppendingFile:
    """A binary file to whose end each ``write`` appends all that it is given, or nothing.

    Where the operating system fails (no space, a quota, a broken disk) the first time is a warning of one line, and
    what was to be written is lost. Later writes are tried again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lost = 0
        self.file = path.open("ab", buffering=0)
        self._end = self.file.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        try:
            self._cut()
            rest = data
            while rest:  # a write that fills the disk writes a part
                rest = rest[self.file.write(rest) :]
            self._end += len(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # if this fails too, the next write cuts
                self._cut()
            self._lose(error)

    def _cut(self) -> None:
        """Remove what was written in part."""
        if self.file.seek(0, os.SEEK_END) > self._end:
            self.file.truncate(self._end)

    def flush(self) -> None:
        """Do nothing: every write goes to the operating system at once."""

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:  # some network disks write late
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not self.lost:
            log.warning("%s: %s; training goes on, what cannot be written there is lost", self.path, error.strerror)
        self.lost += 1


class RunLogger(Logger):
    """Stable-Baselines3's logger for one run folder. A run that goes on at ``first_step`` replaces what came after."""

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        events = Events(folder, first_step)
        super().__init__(str(folder), [events, JsonLines(folder / "metrics.jsonl", first_step)])
        self.writer = events.writer

    def hyperparameters(self, values: dict[str, Any], metrics: tuple[str, ...]) -> None:
        """Write the run's line of the HParams table, with the last value of each of ``metrics``."""
        plain = {}
        for key, value in values.items():
            plain[key] = value if isinstance(value, bool | int | float | str) else str(value)
        self.record("hparams", HParam(plain, dict.fromkeys(metrics, 0.0)), exclude=("json",))
        self.dump(0)

    def write(self, values: dict[str, float], step: int) -> None:
        """Write a line at once, without what was recorded for the next one: a run that was stopped makes that again."""
        for output in self.output_formats:
            output.write(values, dict.fromkeys(values, ()), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self.writer.add_text(tag, markdown, step)

    def gif(self, tag: str, gif: bytes, step: int) -> None:
        write_gif(self.writer, tag, gif, step)


def write_gif(writer: SummaryWriter, tag: str, gif: bytes, step: int) -> None:
    """Write an animation to the Images tab (torch's add_video writes nothing with moviepy 2)."""
    with Image.open(io.BytesIO(gif)) as image:
        summary = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=gif)
    assert writer.file_writer is not None
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=summary)]), step)


class Events(TensorBoardOutputFormat):
    """Stable-Baselines3's TensorBoard output, into a file that a full disk cannot spoil.

    When a run that was cut off goes on, the points that it makes again are hidden (``purge_step``). One that begins
    anew, since nothing had been saved, makes all of them again.
    """

    def __init__(self, folder: Path, first_step: int):
        # TensorBoard reads the files of a folder by name, which begins with the second that they were made in.
        while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        before = set(folder.glob("events.out.tfevents.*"))
        purge_step = first_step + 1 if first_step else None
        if before and not first_step:
            purge_step = FIRST_OF_ALL
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._is_closed = False

        # TensorBoard's own writer is a thread that ends at the first error, and half a record hides all after it.
        # It has made the file and written its head; from here on we append to that file ourselves.
        assert self.writer.file_writer is not None
        self.writer.file_writer.event_writer.close()
        (path,) = set(folder.glob("events.out.tfevents.*")) - before
        self.writer.file_writer.event_writer = EventFile(path)


class EventFile:
    """TensorBoard's EventFileWriter without its thread: each event is on the disk when ``add_event`` returns."""

    def __init__(self, path: Path):
        self.path = path
        self.file = AppendingFile(path)
        self.records = RecordWriter(self.file)

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        self.records.flush()

    def close(self) -> None:
        self.records.close()

    def reopen(self) -> None:
        """Do nothing: the file is open until the run ends."""


class JsonLines(KVWriter):
    """One JSON object for each dump, with its step."""

    def __init__(self, path: Path, first_step: int = 0):
        if not first_step:
            path.write_bytes(b"")
        elif path.exists():
            # What a run that was cut off logged after its last checkpoint is logged again.
            lines = path.read_text(errors="replace").splitlines()
            kept = [f"{line}\n" for line in lines if _step(line) <= first_step]
            write_whole(path, "".join(kept))
        self.file = AppendingFile(path)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        numbers: dict[str, float] = {}
        for key, value in key_values.items():
            excluded = "json" in (key_excluded.get(key) or ())
            if isinstance(value, bool | int | float | np.number) and not excluded:
                numbers[key] = float(value)
        if numbers:
            self.file.write(f"{json.dumps({'step': step} | numbers)}\n".encode())

    def close(self) -> None:
        self.file.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the lines of metrics.jsonl, but for one that a crash cut in half."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    metrics = []
    for line in lines:
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict) and "step" in parsed:
            metrics.append(parsed)
    return metrics


def _step(line: str) -> float:
    """The step of a line; a line that a crash cut in half comes after all others."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")
