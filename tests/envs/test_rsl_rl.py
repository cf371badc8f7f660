"""Simulators with rsl_rl's interface: time limits, partial resets, and what is not shown."""

import logging

import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from memory_tasks import RatioErrors, make_ppo
from unroll.envs.rsl_rl import RslRlEnv
from unroll.errors import EnvError


class Simulator:
    """Environment i falls after 3 + i steps, or is cut after 5; it shows (i, step) in a buffer that it reuses."""

    num_envs = 4
    num_actions = 2
    max_episode_length = 5
    device = "cpu"

    def __init__(self):
        self.shown = torch.zeros(4, 2)
        self.shown[:, 0] = torch.arange(4.0)
        self.extras = {}
        self.given = []

    def get_observations(self):
        return {"policy": self.shown, "critic": torch.zeros(4, 9)}

    def reset(self):
        self.shown[:, 1] = 0

    def step(self, actions):
        self.given.append(actions.clone())
        steps = self.shown[:, 1]
        steps += 1
        fallen = steps == 3 + self.shown[:, 0]
        late = steps >= self.max_episode_length
        dones = (fallen | late).long()  # as rsl_rl has them
        steps[dones.bool()] = 0  # only these begin anew
        return self.get_observations(), torch.ones(4), dones, {"time_outs": late & ~fallen, **self.extras}


def test_episodes_end_where_the_simulator_says_and_time_limits_are_truncations(caplog):
    with caplog.at_level(logging.WARNING):
        env = RslRlEnv(Simulator())
    assert "Simulator does not show the last observation of an episode" in caplog.text
    assert (env.single_observation_space.shape, env.single_action_space.shape) == ((2,), (2,))
    observations, _ = env.reset(seed=0)
    assert observations[:, 1].tolist() == [0] * 4
    ends = {}
    for t in range(1, 6):
        observations, rewards, terminated, truncated, info = env.step(torch.zeros(4, 2))
        assert "final_obs" not in info
        assert rewards.tolist() == [1.0] * 4
        for i in range(4):
            if terminated[i] or truncated[i]:
                ends.setdefault(i, (t, bool(terminated[i]), bool(truncated[i])))
                assert observations[i].tolist() == [i, 0]
    assert ends == {0: (3, True, False), 1: (4, True, False), 2: (5, True, False), 3: (5, False, True)}
    assert observations[:, 1].tolist() == [2, 1, 0, 0]


def test_the_value_of_the_last_step_stands_for_what_a_time_limit_cuts_off():
    agent = make_ppo(RslRlEnv(Simulator(), action_bound=0.1), n_steps=15, gamma=0.5, sequence_length=5)
    callback = RatioErrors()
    agent.learn(120, callback)
    assert max(callback.logged) < 1e-5
    buffer = agent.rollout_buffer
    assert buffer.observations[:5, 3, 1].tolist() == [0, 1, 2, 3, 4]
    assert buffer.observations[:5, 0, 1].tolist() == [0, 1, 2, 0, 1]
    added = buffer.rewards - buffer.raw_rewards
    assert added.nonzero().tolist() == [[4, 3], [9, 3], [14, 3]]
    torch.testing.assert_close(added[4::5, 3], 0.5 * buffer.values[4::5, 3])

    # The memory is emptied where an episode begins, in these environments alone.
    assert buffer.episode_starts[:, 0].nonzero().flatten().tolist() == [0, 3, 6, 9, 12]
    assert buffer.episode_starts[:, 3].nonzero().flatten().tolist() == [0, 5, 10]
    assert {(episode["r"], episode["l"]) for episode in agent.ep_info_buffer} == {(3.0, 3), (4.0, 4), (5.0, 5)}
    given = torch.stack(agent.env.unwrapped.env.simulator.given)
    assert float(given.abs().max()) == pytest.approx(0.1)
    assert evaluate_policy(agent, agent.env, n_eval_episodes=4, warn=False)[0] == pytest.approx(4.25)


def test_a_simulator_without_time_limits_or_rows_is_taken_or_refused():
    simulator = Simulator()
    simulator.step = lambda actions: (simulator.get_observations(), torch.ones(4), torch.ones(4), {})
    _, _, terminated, truncated, _ = RslRlEnv(simulator).step(torch.zeros(4, 2))
    assert terminated.all()
    assert not truncated.any()
    with pytest.raises(EnvError, match="Simulator shows no 'teacher' in its dict of observations"):
        RslRlEnv(Simulator(), group="teacher")
    simulator.shown = torch.zeros(4, 2, 3)
    with pytest.raises(EnvError, match=r"Simulator shows policy of shape \(4, 2, 3\); rows of numbers are needed"):
        RslRlEnv(simulator)
