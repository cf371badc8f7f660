"""What is learned and played stays: weights after 20 updates, rollouts, and run folders of earlier versions."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from golden.fingerprints import cases, largest_difference, of_tensors
from unroll.agents.common.checkpoint import read_checkpoint, write_checkpoint
from unroll.commands import evaluate, train

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "fingerprints.json").read_text())
TOLERANCE = 1e-4  # another processor rounds in another order
RUNS = {"decision_run": 20, "ppo_run": 320}


@pytest.mark.parametrize("name", EXPECTED)
def test_20_updates_end_with_the_same_weights_and_rollouts(name):
    assert largest_difference(EXPECTED[name], cases()[name]()) < TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_of_an_earlier_version_is_resumed_to_the_same_weights_and_returns(tmp_path, name):
    after = RUNS[name]
    run = shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.rmtree(run / "checkpoints" / f"step_{after:08d}")
    expected = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    assert train.main(["--resume", "true", "--run_dir", str(run)]) == 0
    last = f"checkpoints/step_{after:08d}/tensors.safetensors"
    weights, theirs = (of_tensors(load_file(folder / last)) for folder in (run, GOLDEN / name))
    assert largest_difference(theirs, weights) < TOLERANCE
    found = json.loads((run / "evaluation.json").read_text())
    assert largest_difference(expected["results"], found["results"]) < TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_of_another_format_is_one_line_and_no_checkpoint_of_it_is_advised(tmp_path, name, capsys):
    run = shutil.copytree(GOLDEN / name, tmp_path / name)
    for folder in (run / "checkpoints").iterdir():
        tensors, state = read_checkpoint(folder)
        shutil.rmtree(folder)
        write_checkpoint(folder, tensors, state | {"format": 0})
    assert train.main(["--resume", "true", "--run_dir", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in format 0, of another version of unroll; this one reads format" in line
    assert "goes on" not in line


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_of_an_earlier_version_is_evaluated_to_the_same_returns(tmp_path, name):
    output = tmp_path / "again.json"
    assert evaluate.main([str(GOLDEN / name), "--output", str(output), "--device", "cpu"]) == 0
    expected, found = (json.loads(path.read_text())["results"] for path in (GOLDEN / name / "evaluation.json", output))
    assert largest_difference(expected, found) < TOLERANCE
