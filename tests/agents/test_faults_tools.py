"""What Stable-Baselines3's tools count, score and load."""

import copy

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
from unroll.errors import EnvError, HyperparameterError, TrainingError

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


def test_an_agent_that_learned_by_normalised_rewards_alone_goes_on_with_an_environment_that_has_them():
    agent, config = agent_of("--env", "PendulumNoVel-v1", "--normalize_reward", "true")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    bare = loaded.get_env()
    loaded.set_env(VecNormalize(bare, norm_obs=False))
    loaded.learn(config.n_steps)
    with pytest.warns(UserWarning, match="has other statistics of observations than the agent learned by"):
        unroll.load("run").set_env(VecNormalize(bare))


def test_a_loaded_agent_leaves_it_to_an_environment_that_normalises():
    agent, config = agent_of("--env", "PendulumNoVel-v1", "--normalize_observation", "true")
    agent.env.obs_rms.mean[:], agent.env.obs_rms.var[:] = 0.5, 4.0
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    loaded.save("zip")
    shown = np.float32([[0.1, -0.2]])
    expected, _ = loaded.predict(shown, deterministic=True)

    # Rewards alone are none of its business.
    bare = loaded.get_env()
    loaded.set_env(VecNormalize(bare, norm_obs=False))
    np.testing.assert_array_equal(loaded.predict(shown, deterministic=True)[0], expected)

    with pytest.warns(UserWarning, match="has other statistics of observations than the agent learned by"):
        RecurrentPPO.load("zip", env=VecNormalize(bare))
    same = VecNormalize(bare)
    same.obs_rms = copy.deepcopy(loaded.normalizer.obs_rms)
    loaded.set_env(same)
    for one in (loaded, RecurrentPPO.load("zip", env=same)):
        np.testing.assert_array_equal(one.predict(same.normalize_obs(shown), deterministic=True)[0], expected)
    loaded.learn(config.n_steps)


SHOWN = {
    "Pair": spaces.Dict(b=spaces.Box(-1, 1, (2,), np.float32), a=spaces.Box(-9, 9, (), np.float32)),
    "State": spaces.Discrete(4, start=-1),
    "Matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "Both": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)]),
    "Goal": spaces.Dict({key: spaces.Box(-1, 1, (2,)) for key in ("observation", "desired_goal", "achieved_goal")}),
    "View": spaces.Dict(view=spaces.Box(0, 255, (7, 7, 3), np.uint8), side=spaces.MultiDiscrete([[2, 3]])),
}


class Shows(Talks):
    def __init__(self, kind):
        super().__init__()
        self.observation_space = SHOWN[kind]
        self.observation_space.seed(0)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.observation_space.sample(), *rest


class Halves(gym.wrappers.TransformObservation):
    """A wrapper of the environment's own, of the kind that make_env has too."""

    def __init__(self, env):
        super().__init__(env, lambda shown: shown / np.float32(2), env.observation_space)


for kind in SHOWN:
    gym.register(f"Shows{kind}-v0", Shows, kwargs={"kind": kind})
gym.register("ShowsHalves-v0", lambda: Halves(Shows("Matrix")))


def stacked(rows):
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(np.stack(part) for part in zip(*rows, strict=True))
    return np.stack(rows)


@pytest.mark.parametrize("kind", [*SHOWN, "Halves"])
def test_a_loaded_agent_takes_what_an_environment_shows_where_it_learned_from_rows(kind):
    agent, config = agent_of("--env", f"Shows{kind}-v0")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    bare, rows = gym.make(f"Shows{kind}-v0"), make_env(f"Shows{kind}-v0", images=True)
    shown = [env.observation_space.sample() for env in [bare] * 5]
    as_row = loaded.shown._one
    one, _ = loaded.policy.predict(as_row(shown[0]), deterministic=True)
    batch, _ = loaded.policy.predict(stacked([as_row(row) for row in shown]), deterministic=True)
    assert rows.observation_space.contains(as_row(shown[0]))

    np.testing.assert_array_equal(loaded.predict(shown[0], deterministic=True)[0], one)
    np.testing.assert_array_equal(loaded.predict(as_row(shown[0]), deterministic=True)[0], one)
    np.testing.assert_array_equal(loaded.predict(stacked(shown), deterministic=True)[0], batch)
    np.testing.assert_array_equal(loaded.predict(stacked([as_row(row) for row in shown]), deterministic=True)[0], batch)
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1)


def test_a_wrapper_of_the_environments_own_is_not_applied_twice():
    agent, config = agent_of("--env", "ShowsHalves-v0")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    shown = np.float32([[0.5, -0.5], [1, 0]])
    np.testing.assert_array_equal(loaded.shown.prepare(shown), shown.flatten())


def test_as_many_states_as_there_are_is_a_batch_and_the_row_of_one_a_row():
    agent, config = agent_of("--env", "ShowsState-v0")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    np.testing.assert_array_equal(loaded.shown.prepare(np.array([2, -1, 0, 1]))[0], [0, 0, 0, 1])
    np.testing.assert_array_equal(loaded.shown.prepare(np.array([0, 0, 0, 1])), [0, 0, 0, 1])


@pytest.mark.parametrize("flag", ["previous_action", "previous_reward"])
@pytest.mark.parametrize("kind", ["Pair", "View"])
def test_a_loaded_agent_that_was_shown_the_step_before_says_what_it_takes(kind, flag):
    agent, config = agent_of("--env", f"Shows{kind}-v0", f"--{flag}", "true")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    shown, _ = gym.make(f"Shows{kind}-v0").reset()
    with pytest.raises(EnvError, match=r"the step before; it takes .*, as agent.get_env\(\) shows it$"):
        loaded.predict(shown)
    loaded.predict(loaded.get_env().reset())
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1)


def test_a_row_of_a_state_and_the_step_before_is_taken():
    agent, config = agent_of("--env", "ShowsState-v0", "--previous_action", "true")
    loaded = unroll.load(saved(agent, config, "run/checkpoints/step_00000032").parents[1])
    rows = loaded.get_env().reset()
    np.testing.assert_array_equal(
        loaded.predict(rows[0], deterministic=True)[0], loaded.predict(rows, deterministic=True)[0][0]
    )


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
