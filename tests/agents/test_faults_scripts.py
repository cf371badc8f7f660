"""Scripts that go on after an error, evaluate under masks, or load with other arguments."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import make_ppo
from tensor_envs import TensorNoise
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.player import MaskedPredictor
from unroll.envs.tensor import TensorVector
from unroll.errors import HyperparameterError
from unroll.policies.backbones import map_state


class Fails(gym.Env):
    """Noise, whose step ``fails`` raises before it does anything."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, fails):
        self.left = fails
        self.shown = []

    def _observe(self):
        self.shown.append(self.np_random.uniform(-1, 1, 2).astype(np.float32))
        return self.shown[-1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self._observe(), 0.0, False, False, {}


class FailsAsTensors(TensorNoise):
    left = 0

    def step(self, actions):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().step(actions)


def remembered(agent, shown):
    """The memory after these observations of one episode."""
    observations = torch.as_tensor(np.stack(shown))[None]
    state = agent.policy.initial_state(1)
    with torch.no_grad():
        for t in range(observations.shape[1]):
            state = agent.policy(observations[:, t], state)[-1]
    return state


def test_a_step_that_is_interrupted_is_seen_once_by_the_memory():
    env = Fails(6)
    agent = make_ppo(DummyVecEnv([lambda: env]), n_steps=10, batch_size=10, n_epochs=1, learning_rate=0.0)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(10)
    agent.learn(10, reset_num_timesteps=False)
    map_state(torch.testing.assert_close, agent._state, remembered(agent, env.shown[:-1]))


@pytest.mark.parametrize("length", [5, 10])
def test_an_interrupted_rollout_of_tensors_goes_on_where_it_was(length):
    def agent_of(n_steps, fails):
        env = FailsAsTensors(2)
        env.left = fails
        sizes = dict(n_steps=n_steps, batch_size=n_steps, sequence_length=min(length, n_steps))
        return make_ppo(TensorVector(env), **sizes, n_epochs=1, learning_rate=0.0)

    agent = agent_of(10, fails=6)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(20)
    undisturbed = agent_of(5, fails=0)
    undisturbed.learn(10)
    assert agent.num_timesteps == undisturbed.num_timesteps == 10
    assert np.array_equal(agent._last_obs, undisturbed._last_obs)
    map_state(torch.testing.assert_close, agent._state, undisturbed._state)
    agent.learn(20, reset_num_timesteps=False)
    assert agent.num_timesteps == 30


def test_an_error_in_the_first_step_of_a_rollout_of_tensors_is_told_as_it_is():
    env = FailsAsTensors(2)
    env.left = 1
    with pytest.raises(KeyboardInterrupt):
        make_ppo(TensorVector(env), n_steps=10).learn(20)


class Masked(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), float(action == 1), self.steps == 3, False, {}

    def action_masks(self):
        return np.array([False, True])


def test_masks_are_asked_of_a_plain_environment_too():
    env = Masked()
    agent = make_ppo(DummyVecEnv([lambda: env]), n_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an environment without Monitor
        assert evaluate_policy(MaskedPredictor(agent, env), env, n_eval_episodes=2) == (3.0, 0.0)


def test_who_hands_no_state_back_is_told():
    agent = make_ppo(DummyVecEnv([Masked]), n_steps=8)
    row = np.zeros((1, 2), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = agent.predict(row, None, np.array([True]))
        agent.predict(row, state, np.array([False]))
        agent.predict(row)
    with pytest.warns(UserWarning, match="in the middle of an episode, so the memory is empty"):
        agent.predict(row, None, np.array([False]))


def test_another_window_of_statistics_is_taken_where_a_zip_is_loaded(tmp_path):
    agent = make_ppo("CartPole-v1", n_steps=64, stats_window_size=10)
    agent.learn(256)
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", env=agent.get_env(), stats_window_size=3)
    assert loaded.ep_info_buffer.maxlen == loaded.ep_success_buffer.maxlen == 3
    assert list(loaded.ep_info_buffer) == list(agent.ep_info_buffer)[-3:]
    loaded.learn(64)
    assert loaded.ep_info_buffer.maxlen == 3


@pytest.mark.parametrize("size", [0, -1, "a", 1.5])
def test_a_window_that_is_no_number_of_episodes_is_refused(size):
    with pytest.raises(HyperparameterError, match="stats_window_size"):
        make_ppo("CartPole-v1", n_steps=64, stats_window_size=size)
