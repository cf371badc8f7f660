"""Words of a command line that were taken for something else: ~ for a folder of that name, -1e3 for an option."""

import json
from pathlib import Path

import pytest

from ppo_runs import MAZE, assert_one_line, exit_code
from toy import TINY as DECISION
from toy import toy_episodes
from unroll.agents import schemas
from unroll.commands import compare, evaluate, export, record, share, train
from unroll.configs import load_config
from unroll.configs.parser import plain_number
from unroll.envs.datasets.recording import write_hdf5


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder, beside the folder that the commands run in."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    yield home
    assert not [path for path in Path().iterdir() if path.name.startswith("~")]


def test_the_home_folder_is_meant_in_flags_and_files(home, capsys):
    Path("c.yaml").write_text("run_dir: ~/from_file\n")
    (home / "mine.yaml").write_text("steps: 32\n")
    tiny = [*MAZE, "--evaluation.episodes", "1"]
    assert train.main([*tiny, "--config", "c.yaml", "--config=~/mine.yaml"]) == 0
    assert (home / "from_file/config.yaml").is_file()
    assert train.main(["--resume", "true", "--run_dir=~/from_file", "--steps", "64"]) == 0
    assert (home / "from_file/checkpoints/step_00000064").is_dir()
    assert load_config(["--run_dir=~/x"], schemas()).run_dir == str(home / "x")

    assert evaluate.main(["~/from_file", "--output=~/score.json"]) == 0
    assert (home / "score.json").is_file()
    assert compare.main(["--from", "~/from_file", "--output=~/report"]) == 0
    assert (home / "report/comparison.md").is_file()
    assert record.main(["--run=~/from_file", "--episodes", "2", "--output=~/x.hdf5"]) == 0
    assert (home / "x.hdf5").is_file()
    pytest.importorskip("onnxruntime")
    assert export.main(["~/from_file", "--output=~/policy"]) == 0
    assert (home / "policy/policy.onnx").is_file()
    capsys.readouterr()


def test_a_download_goes_to_the_home_folder(home, capsys, monkeypatch):
    """Nothing is fetched: the folder is in use."""
    monkeypatch.setattr("unroll.hub.client.connect", lambda: None)
    (home / "taken").mkdir()
    (home / "taken/file").touch()
    assert share.main(["download", "me/it", "--run_dir=~/taken"]) == 2
    assert_one_line(capsys, f"{home}/taken: is not empty")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("-1e3", "-1000"), ("-2.5E+2", "-250"), ("-.5e1", "-5"), ("-1e-3", "-0.001"), ("-3.e0", "-3")),
        *(("-1000", "-1000"), ("1e3", "1e3"), ("--e1", "--e1"), ("-e3", "-e3"), ("-1e9999", "-1e9999")),
    ],
)
def test_a_negative_number_with_an_exponent_is_written_out(word, expected):
    assert plain_number(word) == expected


def test_a_negative_target_with_an_exponent_is_a_target(capsys):
    write_hdf5(toy_episodes(10), "toy.hdf5")
    arguments = ["--dataset", "toy.hdf5", *DECISION, "--steps", "2", "--evaluation.episodes", "1", "--device", "cpu"]
    assert train.main([*arguments, "--condition", "best", "--run_dir", "run"]) == 0
    assert evaluate.main(["run", "--targets", "-1e1", "3", "-2.5e0"]) == 0
    results = json.loads(Path("run/evaluation.json").read_text())["results"]
    assert [result["target_return"] for result in results] == [-10, 3, -2.5]
    assert record.main(["--run", "run", "--targets", "-1e1", "--episodes", "1", "--output", "x.hdf5"]) == 0
    capsys.readouterr()
    assert exit_code(evaluate.main, ["run", "--targets"]) == 2
    assert_one_line(capsys, "expected at least one argument")
