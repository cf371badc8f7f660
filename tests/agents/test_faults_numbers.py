"""Numbers and spaces that cannot be learned from: one line that says whose fault it is, and where."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from memory_tasks import make_ppo
from ppo_runs import TINY, assert_one_line
from unroll.agents.ppo.step import ActorStep
from unroll.commands import train
from unroll.errors import EnvError

ROW = spaces.Box(-np.inf, np.inf, (2,), np.float32)
BOUNDED = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)


class Odd(gym.Env):
    """Ends after six steps; from step ``at`` on the reward or the observation is another number."""

    action_space = spaces.Discrete(2)
    observation_space = ROW

    def __init__(self, at=10**9, reward=1.0, observation=0.0, truncated=False, observed=ROW, action=None):
        self.at = at
        self.paid = reward
        self.shown = observation
        self.truncated = truncated
        self.observation_space = observed
        self.action_space = Odd.action_space if action is None else action
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(0.0), {}

    def step(self, action):
        assert self.action_space.contains(action), f"was given {action!r}"
        self.t += 1
        odd = self.t >= self.at
        over = self.t % 6 == 0
        observation = self._observe(self.shown if odd else 0.0)
        return observation, self.paid if odd else 1.0, over and not self.truncated, over and self.truncated, {}

    def _observe(self, number):
        if self.observation_space is ROW:
            return np.full(2, number, np.float32)
        return self.observation_space.sample()


def envs(**odd):
    """Two environments, of which the second is odd."""
    return DummyVecEnv([Odd, lambda: Odd(**odd)])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in VecNormalize
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_named_with_its_environment_and_step(reward, normalized):
    env = envs(at=3, reward=reward)
    with pytest.raises(EnvError, match=f"^the reward of environment 1 is {reward} at step 6$"):
        make_ppo(VecNormalize(env) if normalized else env).learn(64)


class PaysNaN(VecEnvWrapper):
    """Makes a NaN of what the second environment is paid."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, np.where([False, True], np.nan, rewards), dones, infos


def test_a_reward_that_is_not_finite_outside_of_vecnormalize_is_named():
    with pytest.raises(EnvError, match=r"^the reward of environment 1 is nan at step 2$"):
        make_ppo(PaysNaN(VecNormalize(envs()))).learn(32)


def test_an_observation_that_is_not_finite_is_named_through_the_statistics_that_it_spoils():
    with pytest.raises(EnvError, match=r"^the observation of environment 1 is not finite at step 6$"):
        make_ppo(VecNormalize(envs(at=3, observation=np.nan))).learn(64)


@pytest.mark.parametrize(("n_steps", "at", "truncated"), [(4, 4, False), (8, 6, True)])
def test_an_observation_that_only_a_value_sees_is_named_and_not_the_learning_rate(n_steps, at, truncated):
    """The last one of a rollout, and the last one of a truncated episode."""
    agent = make_ppo(envs(at=at, observation=np.nan, truncated=truncated), n_steps=n_steps)
    with pytest.raises(EnvError, match=f"^the observation of environment 1 is not finite at step {2 * at}$"):
        agent.learn(2 * n_steps)


@pytest.mark.parametrize("reward", [3e38, 1e30])
def test_rewards_that_float32_cannot_learn_from_are_named(reward):
    message = rf"^the rewards of environment 1 are up to {reward:.3g}".replace("+", r"\+")
    with pytest.raises(EnvError, match=f"{message} at step 32, too large .*normalize_reward"):
        make_ppo(envs(at=3, reward=reward)).learn(64)


def test_observations_that_a_network_turns_into_nan_are_named():
    # a tanh takes a number of any size, a ReLU makes it infinite
    agent = make_ppo(envs(at=3, observation=3e38), activation_fn=torch.nn.ReLU)
    with pytest.raises(EnvError, match=r"^the observation of environment 1 holds 3e\+38 at step 6, too large"):
        agent.learn(64)


REFUSED = {
    "text alone": ({"observed": spaces.Dict(a=spaces.Text(4))}, "shows text alone, of which a wrapper must make"),
    "sequence": ({"observed": spaces.Sequence(ROW)}, "an observation of Sequence(Box"),
    "sequence in a Dict": ({"observed": spaces.Dict(a=spaces.Sequence(ROW), b=ROW)}, "cannot be made one row"),
    "sequence beside an image": ({"observed": spaces.Dict(a=spaces.Sequence(ROW), b=IMAGE)}, "cannot be made one row"),
    "graph": ({"observed": spaces.Graph(ROW, None)}, "an observation of Graph(Box"),
    "choices": ({"action": spaces.MultiDiscrete([[2, 3], [4, 5]])}, "actions are 2 × 2 choices"),
    "bits": ({"action": spaces.MultiBinary([2, 3])}, "Multi-dimensional MultiBinary"),
    "tuple": ({"action": spaces.Tuple([spaces.Discrete(2)])}, "only supports"),
}


@pytest.fixture
def odd():
    """Register an environment with these arguments."""

    def register(**kwargs):
        gym.register("FaultsOdd-v0", Odd, kwargs=kwargs, disable_env_checker=True)

    yield register
    gym.registry.pop("FaultsOdd-v0", None)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_space_that_cannot_be_learned_in_is_one_line(kind, odd, tmp_path, capsys):
    kwargs, expected = REFUSED[kind]
    odd(**kwargs)
    assert train.main([*TINY, "--env", "FaultsOdd-v0", "--steps", "32", "--run_dir", str(tmp_path / "run")]) == 2
    assert_one_line(capsys, expected)
    assert not (tmp_path / "run").exists()


def test_what_no_policy_knows_beside_an_image_becomes_a_row(odd, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr("unroll.envs.make._TOLD", set())
    beside = {"words": spaces.Text(4), "pair": spaces.Tuple([BOUNDED, spaces.Discrete(3)]), "more": BOUNDED}
    beside["nested"] = spaces.Dict(c=spaces.Discrete(2), d=BOUNDED)
    odd(observed=spaces.Dict(beside | {"view": IMAGE}))
    assert train.main([*TINY, "--env", "FaultsOdd-v0", "--steps", "32", "--run_dir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert caplog.text.count("FaultsOdd-v0: words is text and left out: a policy reads numbers") == 1
    for part in ("pair: 5 numbers", "nested: 4 numbers", "view: 36 × 36 × 3 numbers"):
        assert part in printed


def test_a_tuple_is_one_row(odd, tmp_path, capsys):
    odd(observed=spaces.Tuple([spaces.Discrete(3, start=1), BOUNDED]))
    assert train.main([*TINY, "--env", "FaultsOdd-v0", "--steps", "32", "--run_dir", str(tmp_path / "run")]) == 0
    assert "observes 5 numbers" in capsys.readouterr().out


def test_a_box_of_integers_is_given_integers_in_an_export_too():
    whole = spaces.Box(0, 9, (2,), np.int64)
    env = DummyVecEnv([lambda: Odd(action=whole)])
    agent = make_ppo(env).learn(16)
    torch.nn.init.constant_(agent.policy.action_net.bias, 3.7)
    rows = np.zeros((1, 2), np.float32)
    assert agent.predict(rows, deterministic=True)[0].tolist() == [[4, 4]]
    step = ActorStep(agent.policy, ROW)
    state = [port.zeros(1) for port in step.state]
    assert step(torch.from_numpy(rows), torch.ones(1, dtype=torch.bool), *state)[0].tolist() == [[4, 4]]
