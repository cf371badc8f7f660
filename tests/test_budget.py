"""unroll.comparison.budget: what many runs will take is what the finished ones took."""

import re

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from fake_runs import fake_run
from unroll.comparison import budget


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 100 s and one thread that saved a checkpoint of 2 MB every 25 s, cut off once after 40 s."""
    monkeypatch.setattr(budget, "start_seconds", lambda: 20.0)
    flags = ["--threads", "1", "--checkpoint_every", "250", "--experiment", "maze"]
    folder = fake_run(
        tmp_path / "run", "mingru", 0, 1.0, ["--agent", "ppo", "--steps", "1000", *flags], machine="x, 8 cores"
    )
    for begin, end in ((1000, 1040), (5000, 5060)):
        with (folder / f"events.out.tfevents.{begin}.host.1.0").open("wb") as file:
            for at in (begin, end):
                RecordWriter(file).write(Event(wall_time=at).SerializeToString())
    (folder / "checkpoints/step_00001000").mkdir(parents=True)
    (folder / "checkpoints/step_00001000/tensors.safetensors").write_bytes(bytes(2_000_000))
    return folder


def numbers(printed, name):
    (line,) = re.findall(rf"^\| {name}[^|]*\| (.*) \|$", printed, re.MULTILINE)
    return [float(word.replace(",", "")) for word in line.split(" | ")]


def test_the_table_multiplies_what_a_run_took(run, capsys):
    options = ["--runs", "720", "--machines", "2", "--jobs", "5", "--kills", "864", "--price", "2"]
    assert budget.main([str(run), *options]) == 0
    printed = capsys.readouterr().out
    checkpoints, events, rest, files, seconds, threads, between = numbers(printed, "one run of maze")
    assert (checkpoints, files, seconds, threads, between) == (2.0, 6, 100, 1, 25)
    assert 0 < events < rest < 0.01
    disk, many, hours, twice, days, cost = numbers(printed, "all runs of maze")
    assert (disk, many) == (1.4, 6 * 720)
    assert twice == 7.8  # 720 × 120 s × 0.01 kills per second × (12.5 + 20) s, in hours
    assert (hours, cost) == (32, 64)
    assert days == pytest.approx(720 * 120 * 1.325 / 86400 / 10, rel=0.05)


def test_a_folder_that_says_nothing_is_one_line(run, tmp_path, capsys):
    for path in run.glob("events*"):
        path.unlink()
    assert budget.main([str(run)]) == 2
    assert budget.main([str(tmp_path / "nowhere")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no TensorBoard events" in first
    assert "no finished run" in second
