"""A run goes on with the data that it has learned from, wherever they lie."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from toy import TINY, toy_episodes
from unroll.agents import DecisionAgent
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from unroll.agents.decision import task
from unroll.commands import train
from unroll.envs.datasets.recording import write_hdf5

RESUME = ["--resume", "true", "--run_dir", "run", "--steps", "4"]


@pytest.fixture(autouse=True)
def _a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(20), "toy.hdf5")
    run = ["--evaluation.episodes", "1", "--device", "cpu", "--steps", "2", "--run_dir", "run"]
    assert train.main(["--dataset", "toy.hdf5", *TINY, *run]) == 0
    capsys.readouterr()


def change(**arrays):
    episodes = toy_episodes(20)
    for name, row in arrays.items():
        getattr(episodes, name)[row] += 0.25
    Path("toy.hdf5").unlink()
    write_hdf5(episodes, "toy.hdf5")


@pytest.mark.parametrize("what", [{"observations": 100}, {"actions": 7}, {"rewards": 239}])
def test_other_values_are_refused_in_one_line(what, capsys):
    change(**what)
    assert train.main(RESUME) == 2
    error = capsys.readouterr().err.strip()
    assert "toy is not what this run has learned from (20 episodes, 240 steps, checksum" in error
    assert len(error.splitlines()) == 1


def test_other_episodes_are_refused(capsys):
    Path("toy.hdf5").unlink()
    write_hdf5(toy_episodes(21), "toy.hdf5")
    assert train.main(RESUME) == 2
    assert "; now 21, 252, " in capsys.readouterr().err


def test_the_same_episodes_of_other_lengths_are_refused():
    episodes = toy_episodes(2)
    other = dataclasses.replace(episodes, lengths=np.array([11, 13]))
    assert task.digest(episodes) != task.digest(other)


def test_a_file_that_was_moved_is_the_same(capsys):
    Path("elsewhere").mkdir()
    shutil.move("toy.hdf5", "elsewhere/other.hdf5")
    assert train.main([*RESUME, "--dataset", "elsewhere/other.hdf5"]) == 0
    capsys.readouterr()


def test_a_checkpoint_that_does_not_say_is_not_checked_and_says_it_from_then_on(capsys):
    path = latest_checkpoint("run")
    tensors, state = read_checkpoint(path)
    del state["task"]["data"]
    write_checkpoint(path, tensors, state)
    change(observations=3)
    assert train.main(RESUME) == 0
    change(observations=4)
    assert train.main([*RESUME[:-1], "6"]) == 2
    capsys.readouterr()


def test_an_agent_may_learn_from_other_episodes_by_hand():
    agent = DecisionAgent.load("run", device="cpu", episodes=toy_episodes(30))
    assert agent.task["data"]["episodes"] == 30


def test_of_a_large_set_a_sample_is_read(monkeypatch):
    monkeypatch.setattr(task, "WHOLE", 100)
    monkeypatch.setattr(task, "SAMPLED", 10)
    episodes = toy_episodes(20)
    before = task.digest(episodes)
    assert before == task.digest(toy_episodes(20))
    episodes.observations[1] += 1  # between two rows of the sample
    assert before == task.digest(episodes)
    episodes.observations[-1] += 1
    assert before != task.digest(episodes)


def test_nonsense_in_the_place_of_a_digest_is_one_line(capsys):
    path = latest_checkpoint("run")
    tensors, state = read_checkpoint(path)
    for nonsense in ({"episodes": -1, "steps": 1, "checksum": ""}, {"episodes": 1, "steps": 1, "checksum": 3}, []):
        state["task"]["data"] = json.loads(json.dumps(nonsense))
        write_checkpoint(path, tensors, state)
        assert train.main(RESUME) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
