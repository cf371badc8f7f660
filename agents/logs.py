"""Where metrics go: TensorBoard events and, line by line, metrics.jsonl in the run folder. A disk that is full stops
neither the training nor, once there is room again, what is logged then."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.logger import HParam, KVWriter, Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from agents.appending import AppendingFile


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
