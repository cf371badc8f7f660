"""Flags in a Minari episode before its last step: ends, marks of the goal, and what is no flag."""

import warnings

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from unroll.envs import load_episodes
from unroll.errors import DatasetError

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}


def write_minari(flags, name="unit/flags-v0", **more):
    """A set of one episode for each row of flags (terminations), which pays 1 a step and sees the step's number."""
    buffers = []
    for e, terminations in enumerate(flags):
        n = len(terminations)
        buffers.append(
            EpisodeBuffer(
                id=e,
                observations=np.arange(n + 1, dtype=np.float32)[:, None],
                actions=np.zeros((n, 1), np.float32),
                rewards=np.ones(n),
                terminations=np.asarray(terminations),
                truncations=more.get("truncations", [np.arange(1, n + 1) == n] * len(flags))[e],
            )
        )
    space = gym.spaces.Box(-1, 1, (1,), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=space, **ABOUT)


def test_a_minari_episode_is_split_where_it_terminates(caplog):
    every = np.arange(1, 101) % 20 == 0
    write_minari([every, np.zeros(30, bool)])
    for _ in range(2):  # the second time it comes from the cache
        caplog.clear()
        episodes = load_episodes("minari:unit/flags-v0")
        assert episodes.lengths.tolist() == [20] * 5 + [30]
        assert episodes.terminated.tolist() == [True] * 5 + [False]
        assert episodes.truncated.tolist() == [False] * 5 + [True]
        assert episodes.returns.tolist() == [20] * 5 + [30]
        assert episodes.final_observations[:, 0].tolist() == [20, 40, 60, 80, 100, 30]
        assert "1 episodes have terminations or truncations before their last step and are split" in caplog.text
        assert caplog.text.count("into 5") == 1


def test_a_minari_episode_is_split_where_it_is_truncated():
    truncations = np.zeros(10, bool)
    truncations[[3, 9]] = True
    write_minari([np.zeros(10, bool)], truncations=[truncations])
    episodes = load_episodes("minari:unit/flags-v0")
    assert episodes.lengths.tolist() == [4, 6]
    assert episodes.truncated.all()


def test_terminations_step_after_step_are_marks(caplog):
    write_minari([np.arange(50) >= 10, np.zeros(50, bool)])
    episodes = load_episodes("minari:unit/flags-v0")
    assert episodes.lengths.tolist() == [50, 50]
    assert episodes.truncated.all()
    assert not episodes.terminated.any()
    assert "1 episodes have terminations step after step" in caplog.text


@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_minaris_flags_that_are_neither_0_nor_1_are_refused(name, tmp_path):
    write_minari([np.zeros(5, bool), np.zeros(5, bool)])
    with h5py.File(tmp_path / "minari/unit/flags-v0/data/main_data.hdf5", "a") as file:
        flags = file[f"episode_1/{name}"][()].astype(float)
        flags[2] = np.nan
        del file[f"episode_1/{name}"]
        file[f"episode_1/{name}"] = flags
    with pytest.raises(DatasetError, match=rf"episode 1: {name} is nan in step 2, where a flag is 0 or 1"):
        load_episodes("minari:unit/flags-v0")
