"""RecurrentPPO in Gymnasium's vector environments, whichever way they begin an episode anew."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from memory_tasks import MaskedNoise
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.player import MaskedPredictor
from unroll.envs import GymnasiumVector, make_vec_env
from unroll.envs.gymnasium_vector import DUMMY
from unroll.errors import EnvError, HyperparameterError
from unroll.policies.backbones import BACKBONES

SMALL = dict(d_model=8, net_arch=[8])
MODES = list(AutoresetMode)


class Count(gym.Env):
    """Shows (its number, the step), pays the step, and ends after 3 + number steps: truncated where that is even."""

    observation_space = gym.spaces.Box(0, 100, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, number=0):
        self.number = number

    def shown(self):
        return np.array([self.number, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.shown(), {}

    def step(self, action):
        self.t += 1
        over = self.t == 3 + self.number
        even = self.number % 2 == 0
        return self.shown(), float(self.t), over and not even, over and even, {}


class Tensors(VectorEnv):
    """A simulator of two environments that gives tensors, and resets in the step after the last one."""

    def __init__(self):
        self.num_envs = 2
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.single_action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = torch.zeros(2, 1)
        self.over = torch.zeros(2, dtype=torch.bool)
        return self.t.clone(), {}

    def step(self, actions):
        self.t = torch.where(self.over[:, None], torch.zeros(2, 1), self.t + 1)
        reward = torch.where(self.over, 0.0, 1.0)
        self.over = (self.t[:, 0] == 4) & ~self.over
        return self.t.clone(), reward, self.over.clone(), torch.zeros(2, dtype=torch.bool), {}


def counting(mode):
    return SyncVectorEnv([lambda i=i: Count(i) for i in range(3)], autoreset_mode=mode)


def agent_in(env, **kwargs):
    kwargs = dict(n_steps=16, policy_kwargs=SMALL, seed=0, device="cpu") | kwargs
    return RecurrentPPO("MlpPolicy", env, **kwargs)


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_ends_with_its_last_observation_and_begins_with_its_first(mode):
    env = GymnasiumVector(counting(mode))
    shown, seen, dummies = env.reset(), [[] for _ in range(3)], 0
    for _ in range(40):
        new, rewards, dones, infos = env.step(np.zeros(3, np.int64))
        for i, info in enumerate(infos):
            if DUMMY in info:
                dummies += 1
                assert (rewards[i], dones[i]) == (0, True)
                assert "episode" not in info
                continue
            assert shown[i].tolist() == [i, len(seen[i])]
            seen[i].append(rewards[i])
            if dones[i]:
                assert info["terminal_observation"].tolist() == [i, 3 + i]
                assert info["TimeLimit.truncated"] == (i % 2 == 0)
                assert (info["episode"]["r"], info["episode"]["l"]) == (sum(range(1, 4 + i)), 3 + i)
                assert seen[i] == list(range(1, 4 + i))
                seen[i] = []
        shown = new
    assert (dummies > 0) == (mode is AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_what_is_learned_is_what_is_learned_in_the_same_environments_of_stable_baselines3(mode):
    ours = agent_in(counting(mode)).learn(96)
    theirs = agent_in(DummyVecEnv([lambda i=i: Count(i) for i in range(3)])).learn(96)
    for own, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_steps_in_which_an_environment_is_only_reset_are_not_learned_from(backbone):
    """Whatever was done, paid and thought of it in such a step, the gradient is the same, and the first ratio is 1."""
    agent = agent_in(counting(AutoresetMode.NEXT_STEP), backbone=backbone, n_epochs=1, batch_size=None)
    agent.learn(48)
    sequences = agent._sequences()
    real = sequences.learned_from
    assert 0 < int((~real).sum()) < real.numel() / 2
    assert torch.equal(sequences.with_normal_advantages().real(sequences.advantages), sequences.advantages[real])

    def gradient(batch):
        agent.policy.optimizer.zero_grad()
        loss, metrics = agent._loss(batch, **agent._settings())
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in agent.policy.parameters() if p.grad is not None)], metrics

    before, metrics = gradient(sequences)
    for name in ("advantages", "returns", "values", "log_probs"):
        getattr(sequences, name)[~real] += 3.0
    sequences.actions[~real] = 1 - sequences.actions[~real]
    after, _ = gradient(sequences)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)
    assert agent.logger.name_to_value["train/first_ratio_error"] < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(before[0]))


def test_sequences_of_such_steps_alone_are_left_out():
    """With sequences of one step a minibatch may have nothing else, and a mean over nothing is NaN."""
    agent = agent_in(counting(AutoresetMode.NEXT_STEP), n_epochs=2, sequence_length=1, batch_size=2)
    agent.learn(48)
    sequences = agent._sequences()
    batches = [sequences.select(rows) for rows, _ in sequences.minibatches(1)]
    assert len(batches) == int(sequences.learned_from.sum()) < len(sequences)
    assert all(batch.learned_from.all() for batch in batches)

    with pytest.raises(HyperparameterError, match="n_steps 1"):
        agent_in(counting(AutoresetMode.NEXT_STEP), n_steps=1).learn(1)


def test_returns_of_a_next_step_vector_are_those_of_a_same_step_vector():
    """With a value of 0 everywhere, what is learned from is the same rewards under the same discounts."""
    found = []
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        agent = agent_in(counting(mode), n_steps=64)
        torch.nn.init.zeros_(agent.policy.value_net.weight)
        agent.train = lambda: None
        agent.learn(1)
        returns, starts = agent.rollout_buffer.returns[:, 1], agent.rollout_buffer.episode_starts[:, 1]
        if agent._learned_from is not None:
            returns, starts = returns[agent._learned_from[:, 1]], starts[agent._learned_from[:, 1]]
        found.append((returns[:32], starts[:32]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_simulator_of_tensors_can_be_learned_in_and_normalised():
    agent = agent_in(VecNormalize(GymnasiumVector(Tensors()))).learn(64)
    assert [episode["r"] for episode in agent.ep_info_buffer] == [4.0] * len(agent.ep_info_buffer)
    assert len(agent.ep_info_buffer) > 5
    actions, _ = agent.predict(np.zeros((2, 1), np.float32))
    assert actions.shape == (2, 1)


def test_gymnasiums_own_vector_of_cart_poles_is_learned_in():
    agent = agent_in(gym.make_vec("CartPole-v1", num_envs=4)).learn(128)
    assert agent.env.unwrapped.has_dummy_steps
    assert not agent_in(make_vec_env("CartPole-v1", 4)).env.unwrapped.__dict__.get("has_dummy_steps")


def test_what_does_not_fit_is_said():
    env = counting(AutoresetMode.SAME_STEP)
    env.metadata = {}
    with pytest.raises(EnvError, match=r"SyncVectorEnv does not say how .* AutoresetMode.NEXT_STEP"):
        agent_in(env)
    with pytest.raises(HyperparameterError, match="reset_on_done False keeps the memory"):
        agent_in(counting(AutoresetMode.NEXT_STEP), policy_kwargs=SMALL | dict(reset_on_done=False)).learn(48)


class Chess(MaskedNoise):
    """Once it is over no move is allowed, and it refuses a move that is not."""

    def __init__(self):
        super().__init__("box", "multidiscrete")
        self.over = False

    def reset(self, **kwargs):
        self.over = False
        self.options = kwargs.get("options")
        return super().reset(**kwargs)[0], {"opening": 3}

    def action_masks(self):
        return np.zeros(0, bool) if self.over else super().action_masks()

    def step(self, action):
        assert not self.over
        observation, reward, terminated, truncated, _ = super().step(action)
        self.over = terminated or truncated
        info = {"move": {"reward": reward}} | ({"is_success": terminated} if self.over else {})
        return observation, reward, terminated, truncated, info


def chess(mode, kind=SyncVectorEnv):
    return kind([lambda: gym.wrappers.TransformReward(Chess(), lambda reward: reward)] * 3, autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_no_action_that_an_environment_of_the_vector_forbids_is_taken(mode, kind):
    agent = agent_in(VecNormalize(GymnasiumVector(chess(mode, kind)))).learn(96)
    assert agent.masked
    sequences = agent._sequences()
    assert not sequences.action_masks.all()
    env = agent.get_env()
    evaluate_policy(MaskedPredictor(agent, env), env, n_eval_episodes=5)
    assert not env.has_attr("board")
    env.close()


def test_attributes_and_methods_are_those_of_the_environments():
    sync = counting(AutoresetMode.SAME_STEP)
    env = GymnasiumVector(gym.wrappers.vector.RecordEpisodeStatistics(sync))
    assert env.get_attr("number") == [0, 1, 2]
    assert env.get_attr("number", [2]) == [2]
    env.set_attr("number", 5)
    assert [one.number for one in sync.envs] == [5, 5, 5]
    env.reset()
    assert [shown.tolist() for shown in env.env_method("shown")] == [[5, 0]] * 3
    assert env.get_attr("shown")[1]().tolist() == [5, 0]
    assert env.get_attr("episode_count") == [0] * 3  # the vector's own
    assert not env.has_attr("action_masks")
    with pytest.raises(AttributeError):
        env.get_attr("action_masks")
    with pytest.raises(EnvError, match=r"steps all environments at once: no shown\(\) of one of them"):
        env.env_method("shown", indices=0)
    with pytest.raises(EnvError, match=r"Tensors steps all environments at once: no render\(\)"):
        GymnasiumVector(Tensors()).env_method("render")


@pytest.mark.parametrize("mode", MODES)
def test_what_an_environment_says_of_a_step_is_in_its_info(mode):
    agent = agent_in(chess(mode), n_steps=32)
    env = agent.get_env()
    steps = []

    def look(names, _):
        steps.append(list(zip(names["dones"].tolist(), names["rewards"].tolist(), names["infos"], strict=True)))
        return True

    agent.learn(96, callback=look)
    ended = 0
    for step in steps:
        for over, reward, info in step:
            if DUMMY in info:
                assert info.keys() == {DUMMY, "TimeLimit.truncated"}
                continue
            assert info["move"]["reward"] == pytest.approx(reward)
            assert ("is_success" in info) == over
            assert not over or info["is_success"] == (not info["TimeLimit.truncated"])
            assert "opening" not in info
            ended += over
    assert len(agent.ep_success_buffer) == ended > 5
    assert env.reset_infos == [{"opening": 3}] * 3


def test_options_reach_the_next_reset_of_all_environments():
    env = GymnasiumVector(chess(AutoresetMode.DISABLED))
    env.set_options({"level": 2})
    env.reset()
    assert env.get_attr("options") == [{"level": 2}] * 3
    env.reset()
    assert env.get_attr("options") == [None] * 3
    with pytest.raises(EnvError, match="SyncVectorEnv resets all environments at once: options are a dict for all"):
        env.set_options([{"level": 1}] * 3)


@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
def test_a_monitor_that_counts_dummy_steps_is_told_of():
    with pytest.warns(UserWarning, match="VecMonitor counts the steps in which NEXT_STEP only resets"):
        agent_in(VecMonitor(GymnasiumVector(counting(AutoresetMode.NEXT_STEP))))
    agent_in(VecMonitor(GymnasiumVector(counting(AutoresetMode.SAME_STEP))))


@pytest.mark.filterwarnings("ignore:.*Box (low|high)'s precision", "ignore:EnvPool seeds are fixed")
@pytest.mark.parametrize(
    ("name", "policy"), [("CartPole-v1", "MlpPolicy"), ("MiniGrid-MemoryS7-v0", "MultiInputPolicy")]
)
def test_envpool_is_learned_in(name, policy):
    envpool = pytest.importorskip("envpool", reason="the extra envpool")
    env = envpool.make(name, env_type="gymnasium", num_envs=4, num_threads=1, seed=0, max_episode_steps=60)
    if name != "CartPole-v1":
        env = VecNormalize(GymnasiumVector(env), norm_reward=False, norm_obs_keys=["mission"])
    agent = RecurrentPPO(policy, env, n_steps=128, n_epochs=2, policy_kwargs=SMALL, seed=0, device="cpu")
    agent.learn(2 * 4 * 128)
    assert agent.logger.name_to_value["train/first_ratio_error"] < 1e-5
    assert len(agent.ep_info_buffer) > 4
    assert all(episode["l"] <= 60 for episode in agent.ep_info_buffer)
    if name == "CartPole-v1":
        assert all(episode["r"] == episode["l"] for episode in agent.ep_info_buffer)  # 1 a step, none for a dummy
    assert not agent._learned_from.all()


def test_infos_in_a_list_are_refused():
    vector = GymnasiumVector(gym.wrappers.vector.DictInfoToList(counting(AutoresetMode.SAME_STEP)))
    with pytest.raises(EnvError, match="infos are a list, where one dict for all environments is wanted: leave"):
        vector.reset()


def test_what_is_no_gymnasium_environment_is_refused():
    class CartPoleDMEnvPool:
        """As EnvPool makes it with env_type "dm"."""

    with pytest.raises(EnvError, match=r"CartPoleDMEnvPool .* is no Gymnasium environment; EnvPool"):
        agent_in(CartPoleDMEnvPool())
    agent = agent_in(counting(AutoresetMode.SAME_STEP))
    with pytest.raises(EnvError, match="str has no observation_space and is no Gymnasium environment"):
        agent.set_env("CartPole-v1")


class Pool(Tensors):
    """A vector with EnvPool's ``config``, and with infos without masks."""

    def __init__(self, **config):
        super().__init__()
        self.config = {"num_envs": 2, "batch_size": 2, "max_num_players": 1} | config

    def step(self, actions):
        *rest, _ = super().step(actions)
        return *rest, {"is_success": np.array([True, False]), "elapsed": self.t[:, 0], "of_all": [[1], [1, 2]]}


@pytest.mark.parametrize(
    ("config", "line"),
    [({"batch_size": 1}, "gives 1 of its 2 environments"), ({"max_num_players": 2}, "has 2 players")],
)
def test_a_vector_whose_rows_are_not_all_of_its_environments_is_refused(config, line):
    with pytest.raises(EnvError, match=line):
        GymnasiumVector(Pool(**config))
    GymnasiumVector(Pool(batch_size=0))  # EnvPool's word for all
    own = Pool()
    own.config = {"batch_size": 64}  # of a user's own
    GymnasiumVector(own)


def test_infos_without_masks_are_given_for_all_environments():
    vector = GymnasiumVector(Pool())
    vector.reset()
    _, _, _, infos = vector.step(np.zeros((2, 1), np.float32))
    assert [info["is_success"] for info in infos] == [True, False]
    assert all("elapsed" in info and "of_all" not in info for info in infos)
