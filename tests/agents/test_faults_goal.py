"""A Dict observation beside which something stands: nothing of it is dropped, in an environment as in a dataset."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ppo_runs import agent_of
from unroll.envs.datasets.conversion import flatten
from unroll.envs.make import make_env

ONE = spaces.Box(-1, 1, (1,), np.float32)
TWO = spaces.Box(-1, 1, (2,), np.float32)
GOAL = {"observation": ONE, "desired_goal": TWO, "achieved_goal": TWO}
DICTS = {
    "goal": (spaces.Dict(GOAL), 3),
    "without achieved": (spaces.Dict(observation=ONE, desired_goal=TWO), 3),
    "one more": (spaces.Dict(GOAL | {"which": spaces.Discrete(2)}), 7),
    "one more without achieved": (spaces.Dict(observation=ONE, desired_goal=TWO, which=spaces.Discrete(2)), 5),
    "inside": (spaces.Dict(a=spaces.Dict(GOAL), b=ONE), 6),
    "of tasks": (spaces.Dict(GOAL | {"desired_goal": spaces.Dict(kettle=ONE, door=TWO)}), 4),
}


class Samples(gym.Env):
    action_space = spaces.Discrete(2)

    def __init__(self, kind="goal"):
        self.observation_space = DICTS[kind][0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, bool(self.np_random.integers(4) == 0), False, {}


class Which(Samples):
    """Pays who does what the entry beside the goal says."""

    def __init__(self):
        super().__init__("one more")

    def reset(self, **kwargs):
        self.seen, info = super().reset(**kwargs)
        return self.seen, info

    def step(self, action):
        right = float(action == self.seen["which"])
        self.seen, _, over, _, info = super().step(action)
        return self.seen, right, over, False, info


for name, cls in (("FaultsDict-v0", Samples), ("FaultsWhich-v0", Which)):
    if name not in gym.registry:
        gym.register(name, cls, disable_env_checker=True)


def batch(value):
    """A batch of one of a sample."""
    if isinstance(value, dict):
        return {key: batch(part) for key, part in value.items()}
    return np.asarray(value)[None]


@pytest.mark.parametrize("kind", DICTS)
def test_an_environment_and_a_dataset_show_the_same_row(kind):
    space, width = DICTS[kind]
    row = make_env("FaultsDict-v0", kind=kind).reset(seed=3)[0]
    assert row.shape == (width,)
    sample, _ = Samples(kind).reset(seed=3)
    np.testing.assert_array_equal(flatten(space, batch(sample))[0], row)


def test_what_stands_beside_a_goal_is_learned_from():
    agent, _ = agent_of("--env", "FaultsWhich-v0", "--n_envs", "4", "--n_steps", "64", "--learning_rate", "0.01")
    agent.learn(4 * 64 * 12)
    rewards = agent.rollout_buffer.rewards
    assert rewards.mean() > 0.8  # 0.5 where it is not seen
