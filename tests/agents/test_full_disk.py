"""A full disk stops no training, spoils no file, and is told once."""

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toy import LENGTH, TINY, toy_episodes
from unroll.agents.common.callbacks import SaveCheckpoints
from unroll.agents.common.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from unroll.agents.common.logs import AppendingFile, RunLogger
from unroll.commands import train
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    """The file that takes all of the space that is left, to the last byte."""
    path = folder / "ballast"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


class FailingFile:
    """A file that takes ``room`` bytes more and then fails with ``error``; ``broken``: it cannot be cut either."""

    def __init__(self, file, room, error, broken=False):
        self.file, self.room, self.error, self.broken = file, room, error, broken

    def write(self, data):
        part = data[: self.room]
        if not part:
            raise OSError(self.error, os.strerror(self.error))
        self.room -= len(part)
        return self.file.write(part)

    def truncate(self, size):
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.file.truncate(size)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("broken", [False, True])
def test_half_a_line_is_cut_off_before_the_next(tmp_path, error, broken, caplog):
    file = AppendingFile(tmp_path / "lines")
    file.write(b"first\n")
    real, file.file = file.file, FailingFile(file.file, 4, error, broken)
    for line in (b"second\n", b"third\n"):
        file.write(line)
    assert (tmp_path / "lines").read_bytes() == (b"first\nseco" if broken else b"first\n")
    file.file = real
    file.write(b"fourth\n")
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nfourth\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'lines'}: {os.strerror(error)}; training goes on, what cannot be written there is lost"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_that_is_always_full_only_warns(caplog):
    file = AppendingFile(Path("/dev/full"))
    for _ in range(3):
        file.write(b"line\n")
    file.close()
    assert file.lost == 3
    assert len(caplog.records) == 1


def fill_with(logger, monkeypatch, full):
    """Let the two files of a logger fail, or no longer."""
    events, lines = logger.output_formats
    for file in (events.writer.file_writer.event_writer.file, lines.file):
        if full:
            file.file = FailingFile(file.file, 5, errno.ENOSPC)
        else:
            file.file = file.file.file


def logged(folder):
    """The steps in metrics.jsonl and in TensorBoard's events."""
    events = EventAccumulator(str(folder))
    events.Reload()
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, [event.step for event in events.Scalars("train/loss")], events


def dump(logger, *steps):
    for step in steps:
        logger.record("train/loss", 1.0 / step)
        logger.dump(step)


def test_metrics_and_events_go_on_when_there_is_room_again(tmp_path, monkeypatch, caplog):
    logger = RunLogger(tmp_path)
    dump(logger, 1, 2)
    fill_with(logger, monkeypatch, full=True)
    dump(logger, *range(3, 30))
    logger.text("config", "lost", 0)
    fill_with(logger, monkeypatch, full=False)
    dump(logger, 30, 31)
    logger.text("config", "kept", 0)
    logger.close()
    lines, events, everything = logged(tmp_path)
    assert lines == events == [1, 2, 30, 31]
    assert "config/text_summary" in everything.Tags()["tensors"]
    assert len(caplog.records) == 2  # one line for each file


def test_metrics_and_events_survive_a_disk_that_is_full_for_a_while(small_disk, caplog):
    logger = RunLogger(small_disk)
    dump(logger, 1, 2)
    ballast = fill(small_disk)
    dump(logger, *range(3, 200))  # there is room in the last page of each file, and then there is not
    ballast.unlink()
    dump(logger, 200, 201)
    logger.close()
    lines, events, _ = logged(small_disk)
    for steps in (lines, events):
        assert steps[:2] == [1, 2]
        assert steps[-2:] == [200, 201]
        assert steps == sorted(set(steps))
        assert len(steps) < 201
    assert len(caplog.records) == 2


def test_a_checkpoint_that_finds_no_room_is_an_os_error(small_disk):
    write_checkpoint(small_disk / "step_1", {"a": torch.zeros(1000)}, {"step": 1})
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(small_disk / "step_2", {"a": torch.zeros(500_000)}, {"step": 2})
    fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(small_disk / "step_1", {"a": torch.ones(1000)}, {"step": 2})
    assert read_checkpoint(small_disk / "step_1")[1] == {"step": 1}
    assert {path.name for path in small_disk.iterdir()} == {"step_1", "ballast"}


def test_a_recording_that_does_not_fit_is_one_line_and_leaves_nothing(small_disk):
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - 12_000)  # a part of it fits
    path = small_disk / "toy.hdf5"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_hdf5(toy_episodes(400), path)
    assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    write_hdf5(toy_episodes(400), path)
    assert path.stat().st_size > 24_000
    assert load_episodes(str(path)).n_steps == 400 * LENGTH


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(20), tmp_path / "toy.hdf5")
    small = ["--evaluation.episodes", "2", "--device", "cpu", "--warmup_steps", "2", "--evaluation.every", "0"]
    return ["--dataset", "toy.hdf5", *TINY, *small]


def fail_at(monkeypatch, *names):
    """No checkpoint of these names can be written."""

    def write(folder, *rest):
        if folder.name in names:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        write_checkpoint(folder, *rest)

    monkeypatch.setattr("unroll.agents.decision.agent.write_checkpoint", write)


def test_a_checkpoint_that_cannot_be_written_warns_and_the_training_goes_on(dataset, monkeypatch, caplog, capsys):
    fail_at(monkeypatch, "step_00000003", "step_00000009")
    arguments = ["--steps", "12", "--checkpoint_every", "3", "--keep", "1", "--run_dir", "run"]
    assert train.main([*dataset, *arguments]) == 0
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("no checkpoint at 3 (")
    assert first.endswith("training goes on, no checkpoint was written before")
    assert second.endswith("training goes on, run/checkpoints/step_00000006 is intact")
    assert [path.name for path in checkpoints("run")] == ["step_00000012"]
    assert Path("run/evaluation.json").is_file()
    capsys.readouterr()


def test_a_best_checkpoint_that_cannot_be_written_warns(dataset, monkeypatch, caplog, capsys):
    fail_at(monkeypatch, "best")
    assert train.main([*dataset, "--steps", "4", "--evaluation.every", "2", "--run_dir", "run"]) == 0
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("no checkpoint at 2 (")
    assert "run/checkpoints/best" in messages[0]
    assert Path("run/evaluation.json").is_file()
    capsys.readouterr()


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_after_the_evaluation(dataset, monkeypatch, capsys):
    arguments = ["--steps", "12", "--checkpoint_every", "6", "--run_dir", "run"]
    with monkeypatch.context() as full:
        fail_at(full, "step_00000012", "best")
        assert train.main([*dataset, *arguments]) == 2
    output, error = capsys.readouterr()
    assert "95 % interval" in output
    (line,) = error.strip().splitlines()
    assert "the last checkpoint could not be written (" in line
    assert line.endswith("run/checkpoints/step_00000006 is intact")
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()][-1] == 12

    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0
    assert Path("run/evaluation.json").is_file()
    capsys.readouterr()


def test_a_full_disk_leaves_the_best_checkpoint_of_another_evaluation(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "old").touch()
    full = True

    def save(path):
        if full:
            raise OSError(28, "No space left on device")
        path.mkdir()

    saving = SaveCheckpoints(tmp_path, 10, 2, save, None, "best_until_00000064")
    saving.model = SimpleNamespace(num_timesteps=64)
    saving.save_best(1.0)
    assert [path.name for path in folder.iterdir()] == ["best"]
    full = False
    saving.save_best(2.0)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "best_until_00000064"]
    assert (folder / "best_until_00000064" / "old").exists()
    assert saving.best_score == 2.0
