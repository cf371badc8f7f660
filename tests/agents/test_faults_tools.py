"""What Stable-Baselines3's tools count, score and load."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import unroll
from ppo_runs import agent_of, saved
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.player import ppo_player
from unroll.envs import make as make_module
from unroll.envs.make import make_env
from unroll.errors import HyperparameterError, TrainingError

SMALL = dict(d_model=8, net_arch=[8])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Talks(gym.Env):
    """Pays 1 in each of five steps, and says ``episode`` in all of them."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, said=None):
        self.said = said

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == 5, False, {} if self.said is None else {"episode": self.said}


def agent_in(env, **kwargs):
    return RecurrentPPO("MlpPolicy", env, policy_kwargs=SMALL, device="cpu", **(dict(n_steps=16, n_epochs=1) | kwargs))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_episode_of_a_gymnasium_vector_is_counted_once(mode):
    env = SyncVectorEnv([Talks, Talks], autoreset_mode=mode)
    agent = agent_in(env)
    returns, lengths = evaluate_policy(agent, agent.get_env(), n_eval_episodes=6, return_episode_rewards=True)
    assert (returns, lengths) == ([5] * 6, [5] * 6)
    callback = StopTrainingOnMaxEpisodes(3)
    agent.learn(1000, callback)
    assert callback.n_episodes == 6  # three in each of two environments
    assert len(agent.ep_info_buffer) >= 4


@pytest.mark.parametrize("said", [3, {"my": 1}, {"r": 999.0, "l": 3, "t": 1.0}])
@pytest.mark.parametrize("monitored", [False, True])
def test_what_an_environment_itself_says_of_an_episode_is_not_its_return(said, monitored):
    env = Talks(said) if monitored else DummyVecEnv([lambda: Talks(said)])
    agent = agent_in(env).learn(16)
    returns = [episode["r"] for episode in agent.ep_info_buffer]
    if monitored:
        assert returns == [5, 5, 5]
    else:
        assert returns == ([999.0] * 3 if said == {"r": 999.0, "l": 3, "t": 1.0} else [])


def test_a_loaded_agent_takes_what_an_environment_shows():
    agent, config = agent_of("--env", "PendulumNoVel-v1", "--normalize_observation", "true")
    agent.env.obs_rms.mean[:], agent.env.obs_rms.var[:] = 0.5, 4.0
    folder = saved(agent, config, "run/checkpoints/step_00000032").parents[1]
    shown = np.random.default_rng(0).uniform(-1, 1, (1, 2)).astype(np.float32)
    expected, _ = agent.predict(agent.env.normalize_obs(shown), deterministic=True)

    loaded = unroll.load(folder)
    again = RecurrentPPO.load(folder)
    loaded.save("zip")
    for one in (loaded, again, RecurrentPPO.load("zip")):
        np.testing.assert_array_equal(one.predict(shown, deterministic=True)[0], expected)
        with pytest.raises(TrainingError, match="loaded to act"):
            one.learn(16)
    assert not isinstance(loaded.get_env(), VecNormalize)
    before = loaded.normalizer.obs_rms.count
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1)
    assert loaded.normalizer.obs_rms.count == before

    # In an environment of one's own it goes on learning.
    other = VecNormalize(loaded.get_env())
    on = RecurrentPPO.load(folder, env=other)
    np.testing.assert_array_equal(on.predict(other.normalize_obs(shown), deterministic=True)[0], expected)
    on.learn(config.n_steps)


def test_arguments_of_load_change_what_they_name_or_are_refused():
    agent, config = agent_of("--env", "TMaze10-v0")
    folder = saved(agent, config, "run/checkpoints/step_00000032").parents[1]
    changes = dict(learning_rate=1e-5, ent_coef=0.5, n_steps=4)
    agent.save("zip")
    for path in (folder, "zip"):
        loaded = RecurrentPPO.load(path, env=DummyVecEnv([lambda: make_env("TMaze10-v0")]), **changes)
        assert (loaded.lr_schedule(1.0), loaded.ent_coef, loaded.n_steps) == (1e-5, 0.5, 4)
        for wrong, message in (("lerning_rate", "did you mean learning_rate"), ("backbone", "backbone is no argument")):
            with pytest.raises(HyperparameterError, match=message):
                RecurrentPPO.load(path, **{wrong: 1})
    with pytest.raises(HyperparameterError, match="custom_objects is no argument for a run folder"):
        RecurrentPPO.load(folder, custom_objects={})


def test_a_score_is_not_normalised_where_the_environment_has_arguments_of_its_own():
    agent, config = agent_of("--env", "CartPoleNoVel-v1")
    assert ppo_player(agent, config, False).reference[0] is not None
    assert ppo_player(agent, config, False, env_kwargs={"max_episode_steps": 100}).reference == (None, None)


def test_a_wrapper_with_statistics_of_its_own_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(make_module, "_TOLD", set())
    monkeypatch.setitem(
        gym.registry, "Paid-v0", gym.envs.registration.EnvSpec("Paid-v0", lambda: NormalizeReward(Talks()))
    )
    for _ in range(2):
        make_env("Paid-v0")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Paid-v0: its wrapper NormalizeReward keeps statistics")
