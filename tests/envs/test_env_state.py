"""An environment that is saved in the middle of an episode goes on to the same bits, through plain values."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from unroll.agents.common.values import join, split
from unroll.envs.make import make_env
from unroll.envs.saving import EpisodeMonitor
from unroll.envs.tasks import MEMORY_TASKS, NO_VELOCITY_TASKS

MUJOCO = sorted(name for name, spec in gym.registry.items() if "mujoco" in str(spec.entry_point) and "v5" in name)
CONTROL = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]


def walk(env, actions):
    """All that the environment says to the actions, beginning anew where an episode ends."""
    said = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        said.append(np.append(observation, [reward, terminated, truncated]))
        if terminated or truncated:
            said.append(np.ravel(env.reset()[0]))
    return said


@pytest.mark.parametrize("env_id", sorted({*MUJOCO, *CONTROL, *NO_VELOCITY_TASKS, *MEMORY_TASKS}))
def test_an_environment_goes_on_from_its_saved_state_to_the_same_bits(env_id):
    for before in (0, 7, 205):
        env, other = (EpisodeMonitor(make_env(env_id, previous_action=before == 7)) for _ in range(2))
        env.reset(seed=3)
        env.action_space.seed(before)
        actions = [env.action_space.sample() for _ in range(before + 130)]
        walk(env, actions[:before])
        tensors = {}
        saved = json.dumps(split(env.save_state(), "env", tensors))
        after = walk(env, actions[before:])
        other.reset(seed=99)
        other.load_state(join(json.loads(saved), tensors))
        again = walk(other, actions[before:])
        assert all(np.array_equal(a, b) for a, b in zip(after, again, strict=True))
        assert env.rewards == other.rewards


def test_a_state_fits_whether_or_not_somebody_has_asked_for_the_specification():
    env, other = (EpisodeMonitor(make_env("CartPole-v1")) for _ in range(2))
    env.reset(seed=3)
    other.reset(seed=4)
    saved = env.save_state()
    assert "_cached_spec" not in str(saved)
    assert other.spec.id == "CartPole-v1"
    other.load_state(saved)
    for one, same in zip(walk(env, [0, 1] * 20), walk(other, [0, 1] * 20), strict=True):
        np.testing.assert_array_equal(one, same)


def test_plain_values_come_back_as_they_were():
    value = {
        "numbers": [1, 2.5, None, True, "é", float("inf"), 2**127],
        "arrays": (np.arange(6, dtype=np.uint32).reshape(2, 3), np.zeros((0, 4)), np.array(3.0)),
        "scalar": np.float32(0.1),
        "tensors": (torch.arange(3), (torch.ones(2, dtype=torch.bool),)),
    }
    tensors = {}
    back = join(json.loads(json.dumps(split(value, "x", tensors))), tensors)
    assert back["numbers"] == value["numbers"]
    for a, b in zip(value["arrays"], back["arrays"], strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b)
    assert type(back["scalar"]) is np.float32
    assert back["scalar"] == value["scalar"]
    assert torch.equal(back["tensors"][1][0], value["tensors"][1][0])
    with pytest.raises(TypeError, match=r"x\.key: object is not plain"):
        split({"key": object()}, "x", {})
