"""Runs that go on with another number of steps, memories that outlive episodes, and numbers of a recording."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml

from ppo_runs import MAZE, TINY, agent_of, assert_one_line
from unroll.agents.evaluation import scoring
from unroll.agents.ppo.player import ppo_player
from unroll.commands import evaluate, export, record, train
from unroll.envs.wrappers import NoisyActions


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_has_made_the_steps_that_it_has_made(capsys):
    assert train.main([*MAZE, "--steps", "64", "--run_dir", "run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "32"]) == 2
    assert_one_line(capsys, "run: is at step 64, and --steps 32 is less")
    assert yaml.safe_load(Path("run/config.yaml").read_text()) == config


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_schedule_that_is_made_longer_is_told(schedule, capsys):
    assert train.main([*MAZE, "--steps", "32", "--run_dir", "run", "--schedule", schedule]) == 0
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0
    assert "note: the run was made" not in capsys.readouterr().out
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "64"]) == 0
    told = "note: the run was made for 32 steps; what falls over a run" in capsys.readouterr().out
    assert told == (schedule == "linear")


def test_a_memory_that_outlives_episodes_is_scored_over_a_chain_of_them():
    agent, config = agent_of("--env", "CartPoleNoVel-v1", "--reset_on_done", "false")
    player = ppo_player(agent, config, False)
    results = []
    for n_envs in (1, 100):
        player.n_envs = n_envs
        results.append(scoring.evaluate(player, 5, 3))
    assert results[0]["results"][0]["returns"] == results[1]["results"][0]["returns"]
    assert results[0]["memory"] == "carried, from episode to episode too"
    agent, config = agent_of("--env", "CartPoleNoVel-v1")
    assert not ppo_player(agent, config, False).chained


class Whole(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(0, 9, (2,), np.int64)

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_leaves_whole_numbers_whole(noise):
    env = NoisyActions(Whole(), noise)
    for action in np.arange(10):
        env.step(np.array([action, 9 - action]))


def test_a_seed_that_is_too_large_is_one_line(capsys):
    assert train.main([*TINY, "--env", "CartPole-v1", "--steps", "32", "--run_dir", "run"]) == 0
    capsys.readouterr()
    for command, arguments in (
        (evaluate, ["run", "--stochastic"]),
        (record, ["--run", "run", "--episodes", "1", "--output", "a.hdf5"]),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main([*arguments, "--seed", "18446744073709551616"])
        assert_one_line(capsys, "seed")


def test_another_checkpoint_is_exported_beside_the_last_one(monkeypatch):
    assert train.main([*MAZE, "--steps", "64", "--checkpoint_every", "32", "--keep", "2", "--run_dir", "run"]) == 0
    folders = []
    monkeypatch.setattr("unroll.export.write_export", lambda *given: folders.append(given[-1].name) or 0.0)
    for path in ("run", "run/checkpoints/step_00000064", "run/checkpoints/step_00000032"):
        export.main([path, "--format", "pt2"])
    assert folders == ["pt2", "pt2", "pt2_step_00000032"]
