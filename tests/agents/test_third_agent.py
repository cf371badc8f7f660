"""A third algorithm is one file and one line: every command takes it, and no other file has to know."""

import json
import sys
from pathlib import Path

import pytest

import unroll
from unroll.agents import AGENTS
from unroll.agents.common.checkpoint import read_checkpoint
from unroll.commands import compare, evaluate, export, inspect, record, train
from unroll.comparison import workers
from unroll.hub.card import model_card
from unroll.hub.files import stage
from unroll.hub.verify import verify

SMALL = ["--agent", "repeat", "--backbone.d_model", "8", "--backbone.n_layers", "1", "--threads", "1"]
REPEATED = 24.0  # twelve times the action 2


@pytest.fixture(autouse=True)
def third(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = dict(AGENTS)
    monkeypatch.delitem(sys.modules, "toy_agent", raising=False)
    import toy_agent  # noqa: F401 - it registers the algorithm

    yield
    AGENTS.clear()
    AGENTS.update(before)


def returns(path):
    return json.loads(Path(path).read_text())["results"][0]["returns"]


def test_it_trains_is_resumed_evaluated_recorded_exported_and_shared():
    assert train.main([*SMALL, "--run_dir", "whole"]) == 0
    assert returns("whole/evaluation.json") == [REPEATED] * 2

    assert train.main([*SMALL, "--run_dir", "cut", "--steps", "10"]) == 0
    assert train.main(["--resume", "true", "--run_dir", "cut", "--steps", "20"]) == 0
    whole, cut = (read_checkpoint(f"{run}/checkpoints/step_00000020")[0] for run in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole)

    assert evaluate.main(["whole", "--output", "again.json", "--episodes", "3"]) == 0
    assert returns("again.json") == [REPEATED] * 3
    assert type(unroll.load("whole")).__name__ == "RepeatAgent"

    assert record.main(["--run", "whole", "--episodes", "4", "--output", "data.hdf5"]) == 0
    assert inspect.main(["data.hdf5"]) == 0

    assert export.main(["whole", "--output", "onnx"]) == 0
    assert json.loads(Path("onnx/policy.json").read_text())["agent"] == "RepeatAgent"

    stage(Path("whole"), Path("staged"), best=False, events=False)
    assert "# repeating agent with mingru on ToyDiscrete-v0" in model_card(verify(Path("staged"), "whole"), "me/run")


def test_it_is_compared(monkeypatch, capsys):
    script = str(Path(__file__).parents[1] / "toy_agent.py")
    monkeypatch.setattr(workers, "python_command", lambda _: [sys.executable, script])
    Path("repeat.yaml").write_text("agent: repeat\nbackbone: {d_model: 8, n_layers: 1}\n")
    grid = ["--config", "repeat.yaml", "--backbones", "mingru,gru", "--seeds", "1", "--jobs", "2", "--action", "1"]
    assert compare.main(grid) == 0, capsys.readouterr().err
    report = json.loads(Path("runs/compare-repeat/comparison.json").read_text())["experiments"]["repeat"]
    assert {row["scores"][0] for row in report["backbones"].values()} == {12.0}
    assert report["steps"] == "20 updates"


def test_a_wrong_field_is_told_by_its_agent(capsys):
    with pytest.raises(SystemExit):
        train.main([*SMALL, "--context", "3"])
    assert "for agent repeat: it is one of agent decision" in capsys.readouterr().err
