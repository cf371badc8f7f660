"""Columns in another order, or other units than the environment's: a line says where episodes begin otherwise."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from unroll.commands import train
from unroll.envs import load_episodes
from unroll.envs.datasets.doctor import remarks
from unroll.envs.datasets.starts import unlike_starts


@pytest.fixture(scope="module")
def hopper():
    return load_episodes("embedded:hopper-v5-replay")


def with_observations(episodes, observations):
    return dataclasses.replace(episodes, observations=np.asarray(observations, np.float32))


def test_the_data_as_they_are_begin_as_their_environment(hopper):
    assert unlike_starts(hopper, "Hopper-v5", {}) is None
    assert unlike_starts(hopper, None, {}) is None
    assert unlike_starts(hopper, "Nowhere-v0", {}) is None


def test_columns_in_another_order_are_told(hopper):
    shuffled = with_observations(hopper, hopper.observations[:, ::-1])
    (line,) = [line for line in remarks(shuffled) if "begin" in line]
    assert line.startswith("episodes begin otherwise in Hopper-v5: column 0 is -0.00498")


def test_normalised_observations_are_told(hopper):
    seen = np.asarray(hopper.observations)
    normal = with_observations(hopper, (seen - seen.mean(axis=0)) / seen.std(axis=0))
    assert "column 0 is " in unlike_starts(normal, "Hopper-v5", {})


def test_a_column_that_never_moves_here_and_is_never_the_same_there_is_told(hopper):
    seen = np.array(hopper.observations)
    seen[:, 5] = 0.5
    assert "column 5 is 0.5 here" in unlike_starts(with_observations(hopper, seen), "Hopper-v5", {})


def test_pieces_of_episodes_may_begin_anywhere(hopper):
    pieces = np.full(hopper.n_steps // 10, 10)
    cut = dataclasses.replace(
        with_observations(hopper, hopper.observations[: pieces.sum()]),
        actions=hopper.actions[: pieces.sum()],
        rewards=hopper.rewards[: pieces.sum()],
        lengths=pieces,
        terminated=np.zeros(len(pieces), bool),
        truncated=np.ones(len(pieces), bool),
        final_observations=None,
    )
    assert unlike_starts(cut, "Hopper-v5", {}) is None


def shifted(**kwargs):
    env = gym.make("Hopper-v5", **kwargs)
    return gym.wrappers.TransformObservation(env, lambda seen: seen + 1, env.observation_space)


def test_training_for_another_environment_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(gym.registry, "Shifted-v0", gym.envs.registration.EnvSpec("Shifted-v0", shifted))
    arguments = ["--backbone.d_model", "8", "--backbone.n_layers", "1", "--steps", "1", "--evaluation.episodes", "1"]
    for env, told in (("Hopper-v5", False), ("Shifted-v0", True)):
        assert train.main([*arguments, "--evaluation.env", env, "--run_dir", str(tmp_path / env)]) == 0
        assert ("note: episodes begin otherwise in Shifted-v0" in capsys.readouterr().out) == told
