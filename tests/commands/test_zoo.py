"""Trained runs that come with the package: found by name, played as any run, and never written to."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import unroll
from benchmarks import zoo as maker
from unroll.agents import DecisionAgent, RecurrentPPO
from unroll.agents.common.checkpoint import read_checkpoint
from unroll.commands import evaluate, export, record, train
from unroll.errors import CheckpointError
from unroll.zoo import FOLDER, find_run, zoo_names

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PPO = "zoo:cartpole_masked/mingru"
DECISION = "zoo:hopper_replay/mingru"
TABLE = json.loads((FOLDER / "zoo.json").read_text())


@pytest.fixture(autouse=True)
def nothing_is_written_into_the_package(tmp_path, monkeypatch):
    """Run in a folder of one's own, and look at the package afterwards."""
    monkeypatch.chdir(tmp_path)
    before = contents()
    yield
    assert contents() == before


def contents():
    return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}


def test_the_table_has_every_run_and_every_run_is_small():
    assert list(TABLE) == zoo_names()
    units = {name: entry["learned"].split()[1] for name, entry in TABLE.items()}
    assert (units[PPO.removeprefix("zoo:")], units[DECISION.removeprefix("zoo:")]) == ("steps", "updates")
    text = (FOLDER / "README.md").read_text()
    for name in zoo_names():
        assert f"`zoo:{name}`" in text
        files = sorted(path.name for path in (FOLDER / name).rglob("*") if path.is_file())
        assert files == ["config.yaml", "manifest.json", "state.json", "tensors.safetensors"]
        (checkpoint,) = (FOLDER / name / "checkpoints").iterdir()
        tensors, _ = read_checkpoint(checkpoint)
        assert not any(key.startswith(("optimizer.", "rollout.")) for key in tensors)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 2_200_000


def test_an_install_has_every_file_of_the_zoo():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["unroll.zoo"]
    packed = {path for pattern in patterns for path in FOLDER.glob(pattern) if path.is_file()}
    there = {path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert packed == there


@pytest.mark.parametrize("name", zoo_names())
def test_a_run_of_the_zoo_reaches_what_the_table_says(name, capsys):
    output = Path("runs", "zoo", name, "evaluation.json")
    assert evaluate.main([f"zoo:{name}", "--device", "cpu"]) == 0
    assert f"written to {output}\n" in capsys.readouterr().out
    found = json.loads(output.read_text())["results"]
    assert output.with_suffix(".png").is_file()

    # Another processor rounds in another order, and an episode takes another course.
    for result, expected in zip(found, TABLE[name]["results"], strict=True):
        assert result["target_return"] == expected["target_return"]
        assert result["return_mean"] == pytest.approx(expected["return_mean"], rel=0.2)


def test_an_agent_of_the_zoo_is_loaded_by_its_name():
    assert isinstance(unroll.load(PPO), RecurrentPPO)
    assert isinstance(RecurrentPPO.load(PPO), RecurrentPPO)
    assert isinstance(DecisionAgent.load(DECISION), DecisionAgent)
    action, state = unroll.load(PPO).predict(np.zeros((1, 2), np.float32), None, np.ones(1, bool), True)
    assert action.shape == (1,)
    assert state is not None


@pytest.mark.parametrize("name", ["zoo:", "zoo:cartpole_masked", "zoo:../zoo/cartpole_masked/mingru", "zoo:no/such"])
def test_an_unknown_name_is_one_line_that_lists_those_that_exist(name, capsys):
    for main in (evaluate.main, export.main):
        assert main([name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name}: no such run in the zoo; there are {PPO}, " in line
    with pytest.raises(CheckpointError, match="no such run in the zoo"):
        unroll.load(name)


def test_an_export_and_a_recording_of_the_zoo_are_written_below_the_current_folder(capsys):
    pytest.importorskip("onnxscript")
    assert export.main([PPO]) == 0
    assert Path("runs", "zoo", "cartpole_masked", "mingru", "onnx", "policy.onnx").is_file()
    assert record.main(["--run", PPO, "--episodes", "2", "--output", "data.hdf5"]) == 0
    assert Path("data.hdf5").is_file()


@pytest.mark.parametrize("name", ["decision_run", "ppo_run"])
def test_a_trained_run_is_put_into_a_zoo_without_what_going_on_needs(name, tmp_path):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    maker.add_runs(zoo, [f"task={GOLDEN / name}"])
    ((added, entry),) = json.loads((zoo / "zoo.json").read_text()).items()
    assert entry["results"][0]["return_mean"] is not None
    assert f"`zoo:{added}`" in (zoo / "README.md").read_text()

    # It plays as the run does.
    results = []
    for run in (GOLDEN / name, zoo / added):
        output = tmp_path / "score.json"
        assert evaluate.main([str(run), "--output", str(output), "--episodes", "2", "--device", "cpu"]) == 0
        results.append([result["returns"] for result in json.loads(output.read_text())["results"]])
    assert results[0] == results[1]


def test_runs_that_do_not_belong_into_a_zoo_are_refused(tmp_path):
    run = shutil.copytree(GOLDEN / "ppo_run", tmp_path / "run")
    for word in ("no name", "Name=x", "task=", f"task={tmp_path}"):
        with pytest.raises(CheckpointError):
            maker.add_runs(tmp_path, [word])
    (run / "evaluation.json").unlink()
    with pytest.raises(CheckpointError, match="holds no evaluation"):
        maker.add_runs(tmp_path, [f"task={run}"])


def test_a_folder_of_the_user_is_found_as_it_is_named(tmp_path):
    assert find_run(tmp_path) == tmp_path
    assert find_run("runs/zoo") == Path("runs/zoo")


@pytest.mark.parametrize("name", zoo_names())
def test_a_run_of_the_zoo_does_not_go_on_learning(name, tmp_path, capsys):
    shutil.copytree(FOLDER / name, tmp_path / "run")
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "200000"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no optimizer, so it can be played, and not go on learning" in line
