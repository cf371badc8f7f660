from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from unroll.envs.datasets.reference import d4rl_table, normalized_score, reference_returns


def test_the_table_has_155_addresses_and_147_scores():
    rows = d4rl_table().values()
    assert len(rows) == 155
    assert sum("reference_returns" in row for row in rows) == 147
    host = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
    assert all(row["url"].startswith(host) and row["url"].endswith(".hdf5") for row in rows)
    assert all(low < high for low, high in (row["reference_returns"] for row in rows if "reference_returns" in row))
    assert len({row["url"].rsplit("/", 1)[1] for row in rows}) == 155  # file names do not collide in one folder


@pytest.mark.parametrize(
    ("dataset_id", "expected"),
    [
        ("hopper-medium-v2", (-20.272305, 3234.3)),
        ("halfcheetah-expert-v2", (-280.178953, 12135.0)),
        ("walker2d-medium-replay-v2", (1.629008, 4592.3)),
        ("antmaze-umaze-v2", (0, 1)),
        ("kitchen-mixed-v0", (0, 4)),
        ("pen-human-v1", (96.262799, 3076.8331017826877)),
        ("maze2d-large-v1", (6.7, 273.99)),
    ],
)
def test_reference_returns_are_d4rls(dataset_id, expected):
    assert reference_returns(dataset_id) == (expected, f"D4RL {dataset_id}")


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_gymnasiums_hopper_is_scored_as_d4rls(version):
    assert reference_returns(f"Hopper-v{version}") == ((-20.272305, 3234.3), "D4RL hopper")


def test_without_velocities_the_score_is_the_originals_and_says_so():
    assert reference_returns("HopperNoVel-v5") == ((-20.272305, 3234.3), "D4RL hopper, velocities seen")
    assert reference_returns("Walker2dNoVel-v5")[0] == reference_returns("Walker2d-v5")[0]
    assert reference_returns("CartPoleNoVel-v1")[0] == reference_returns("CartPole-v1")[0]


@pytest.mark.parametrize("name", [None, "", "Ant-v5", "PendulumNoVel-v1", "maze2d-eval-umaze-v1", "NoSuch-v0"])
def test_without_a_reference_there_is_none(name):
    assert reference_returns(name) == (None, None)


def test_the_score_is_0_for_the_random_and_100_for_the_expert_policy():
    assert normalized_score(3234.3, (-20.272305, 3234.3)) == pytest.approx(100)
    np.testing.assert_allclose(normalized_score(np.array([-20.0, 0.0, 40.0]), (-20, 20)), [0, 50, 150])


def test_the_random_return_of_cartpole_is_what_a_random_policy_gets():
    env = gym.make("CartPole-v1").unwrapped
    env.action_space.seed(0)
    lengths = []
    for seed in range(2000):
        env.reset(seed=seed)
        lengths.append(1)
        while not env.step(env.action_space.sample())[2]:
            lengths[-1] += 1
    reference, _ = reference_returns("CartPole-v1")
    assert abs(np.mean(lengths) - reference[0]) < 4 * np.std(lengths) / np.sqrt(len(lengths))
