"""--track wandb: what wandb keeps for its server has the scalars of a run, and a run that goes on is the same run."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from toy import TINY
from unroll.agents import schemas
from unroll.commands import train
from unroll.configs import RunConfig, load_config

ROOT = Path(__file__).parents[2]
SMALL = [
    *TINY,
    "--evaluation.episodes",
    "1",
    "--condition",
    "best",
    "--evaluation.targets",
    "[100]",
    "--device",
    "cpu",
    "--threads",
    "1",
]


def records(path):
    """The records of a .wandb file: protobufs in LevelDB's log format after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def test_scalars_are_kept_offline_and_a_run_that_goes_on_is_the_same(tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    new = [*SMALL, "--track", "wandb", "--steps", "10", "--run_dir", str(tmp_path / "run")]
    for arguments in (new, ["--resume", "true", "--run_dir", str(tmp_path / "run"), "--steps", "15"]):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "wandb sync" in result.stdout
    found = [record for path in sorted(tmp_path.rglob("*.wandb")) for record in records(path)]
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1
    logged = {}
    for record in found:
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        logged |= {(tag, row["global_step"]): value for tag, value in row.items() if "/" in tag}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for tag in ("train/loss", "eval/return_mean"):
            if tag in line:
                assert logged[tag, line["step"]] == pytest.approx(line[tag], rel=1e-6)
    assert {step for tag, step in logged if tag == "train/loss"} == {5, 10, 15}


def test_without_wandb_or_its_server_a_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = [*SMALL, "--track", "wandb", "--steps", "1", "--run_dir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'unroll-rl[wandb]'" in line
    monkeypatch.undo()

    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    environment = os.environ | {"WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": "nowhere"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "WANDB_MODE=offline" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_where_a_run_is_tracked_is_not_what_it_learns():
    config = load_config(["--track", "wandb"], schemas())
    assert config.track == "wandb"
    assert load_config([], schemas()).track == "none"
    assert "track" in RunConfig.may_change
