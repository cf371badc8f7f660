"""Checkpoints: whole or not at all, and nothing damaged is accepted."""

import json
import random
import shutil

import pytest
import torch

from unroll.agents.common.checkpoint import latest_checkpoint, optimizer_tensors, read_checkpoint, write_checkpoint
from unroll.agents.common.restoring import check_moments, check_tensors
from unroll.errors import CheckpointError


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


def test_whoever_may_read_the_state_may_read_the_weights(saved):
    assert len({(saved / name).stat().st_mode for name in ("tensors.safetensors", "state.json", "manifest.json")}) == 1


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

    monkeypatch.setattr("unroll.agents.common.checkpoint.save_file", crash)
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


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_file_that_is_elsewhere_is_none_of_the_checkpoint(saved, tmp_path, name):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: a link"):
        read_checkpoint(saved)


def test_json_that_is_nested_too_deep_is_one_line(saved):
    (saved / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"manifest.json: not JSON \(maximum recursion depth"):
        read_checkpoint(saved)


def test_tensors_are_taken_only_by_name_shape_type_and_finite_value():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(())}
    check_tensors({"a": torch.ones(2), "b": torch.ones(())}, wanted, "weights")
    for change, message in (
        ({"c": torch.ones(1)}, "weights c: here or there alone"),
        ({"a": torch.ones(3)}, r"weights a is float32 \(3,\), not float32 \(2,\)"),
        ({"a": torch.ones(2, dtype=torch.float16)}, r"weights a is float16 \(2,\), not float32"),
        ({"a": torch.tensor([1.0, torch.nan])}, "weights a is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tensors({"a": torch.ones(2), "b": torch.ones(())} | change, wanted, "weights")


def test_moments_are_those_of_weights_that_there_are_and_whole():
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(weights, fused=True)
    check_moments(optimizer_tensors(optimizer), optimizer)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer)
    check_moments(tensors, optimizer)
    check_moments({name: value for name, value in tensors.items() if ".0." in name}, optimizer)  # one had no gradient
    with pytest.raises(IndexError):
        check_moments(tensors | {"optimizer.2.exp_avg": torch.ones(1)}, optimizer)
    del tensors["optimizer.1.exp_avg"]
    with pytest.raises(ValueError, match=r"optimizer\.1\.exp_avg: here or there alone"):
        check_moments(tensors, optimizer)


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
