"""Checkpoints: whole or not at all, and nothing damaged is accepted."""

import json
import random
import shutil

import pytest
import torch

from agents.checkpoint import CheckpointError, latest_checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step_00000001"
    write_checkpoint(path, {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}, {"step": 1, "text": "é"})
    return path


def test_what_was_written_is_read(saved):
    tensors, state = read_checkpoint(saved)
    assert torch.equal(tensors["a"], torch.arange(1000.0))
    assert state == {"step": 1, "text": "é"}
    assert sorted(path.name for path in saved.parent.iterdir()) == ["step_00000001"]  # nothing temporary is left


def test_writing_again_replaces_it(saved):
    write_checkpoint(saved, {"a": torch.zeros(1)}, {"step": 2})
    assert read_checkpoint(saved)[1] == {"step": 2}


def test_nothing_but_a_checkpoint_is_ever_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "precious.txt").write_text("years")
    (tmp_path / "file").write_text("years")
    for name in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="left alone"):
            write_checkpoint(tmp_path / name, {"a": torch.zeros(1)}, {})
    assert (tmp_path / "thesis" / "precious.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis"]


def test_a_crash_while_writing_leaves_the_old_checkpoint(saved, monkeypatch):
    def crash(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("agents.checkpoint.save_file", crash)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(saved, {"a": torch.zeros(1)}, {"step": 2})
    assert read_checkpoint(saved)[1]["step"] == 1
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_no_damaged_checkpoint_is_accepted(saved, tmp_path):
    source, choose = saved, random.Random(0)
    for kind in ["cut", "flip", "delete", "empty", "garbage"] * 12:
        damaged = tmp_path / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(source, damaged)
        path = choose.choice(sorted(damaged.iterdir()))
        content = bytearray(path.read_bytes())
        if kind == "cut":
            path.write_bytes(content[: choose.randrange(len(content))])
        elif kind == "flip":
            content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
            path.write_bytes(content)
        elif kind == "delete":
            path.unlink()
        else:
            path.write_bytes(b"" if kind == "empty" else choose.randbytes(len(content)))
        if path.exists() and path.name == "manifest.json" and _same(path, source / path.name):
            continue  # a flipped bit in the white space
        with pytest.raises(CheckpointError, match=str(damaged)):
            read_checkpoint(damaged)


def _same(path, other):
    try:
        return json.loads(path.read_text()) == json.loads(other.read_text())
    except ValueError:
        return False


def test_the_latest_checkpoint_of_a_run_is_found(saved, tmp_path):
    later = saved.with_name("step_100000000")
    write_checkpoint(saved.with_name("step_99999999"), {"a": torch.zeros(1)}, {"step": 10})
    write_checkpoint(saved.with_name("step_best"), {"a": torch.zeros(1)}, {"step": 10})
    write_checkpoint(later, {"a": torch.zeros(1)}, {"step": 10})
    assert latest_checkpoint(tmp_path / "run") == later
    assert latest_checkpoint(saved) == saved
    with pytest.raises(CheckpointError, match="no such run folder"):
        latest_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        latest_checkpoint(tmp_path)
