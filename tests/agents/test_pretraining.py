"""Behaviour from a dataset, then PPO: what is cloned, what PPO goes on with, and what keeps it from being undone."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from memory_tasks import MaskedNoise, Noise, Recall, make_ppo, vector
from ppo_runs import NORMALIZED, TINY, assert_one_line, assert_same, exit_code, finish, metrics
from toy import toy_episodes
from unroll.agents import schemas
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint, read_checkpoint, write_checkpoint
from unroll.agents.ppo import pretraining
from unroll.agents.ppo.gradients import actor_parameters, critic_parameters
from unroll.agents.ppo.pretraining import as_observed, discounted_sums, pretrain_loss, value_targets
from unroll.agents.ppo.training import PPOTraining
from unroll.commands import train
from unroll.configs import load_config
from unroll.envs import make_env
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.datasets.sampling import HostSampler, SequenceSampler
from unroll.errors import DatasetError, EnvError, HyperparameterError

SHORT = ["--pretrain.updates", "20", "--pretrain.batch_size", "8"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def record(env, choose, n, name="scripted"):
    """Episodes of an environment in which ``choose(observations so far)`` chooses."""
    rows, lengths, terminated = [], [], []
    for seed in range(n):
        seen, over = [env.reset(seed=seed)[0]], False
        while not over:
            action = choose(seen)
            following, reward, ended, truncated, _ = env.step(action)
            rows.append((seen[-1], action, reward))
            seen.append(following)
            over = ended or truncated
        lengths.append(len(seen) - 1)
        terminated.append(ended)
    observations, actions, rewards = zip(*rows, strict=True)
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    start = int(env.action_space.start) if discrete else 0
    return Episodes(
        observations=np.array(observations, np.float32),
        actions=np.array(actions) - start,
        rewards=np.array(rewards, np.float32),
        lengths=np.array(lengths),
        terminated=np.array(terminated),
        truncated=~np.array(terminated),
        action_space=env.action_space,
        name=name,
        env_id=env.spec.id if env.spec else None,
    )


def recall_episodes(n=64):
    """In every step the cue is named that the first step shows."""
    return record(Recall(), lambda seen: int(seen[0][0] > 0), n)


def maze_episodes(n=32):
    """Straight to the junction, and there to the side that the first step shows."""
    env = make_env("TMaze10-v0")
    return record(env, lambda seen: 0 if len(seen) <= 10 else (1 if seen[0][1] > 0 else 3), n)


def returns_of(agent, env, n=20):
    returns = []
    for seed in range(n):
        observation, state, over, total = env.reset(seed=1000 + seed)[0], None, False, 0.0
        while not over:
            action, state = agent.predict(observation, state, deterministic=True)
            observation, reward, ended, truncated, _ = env.step(action)
            total += reward
            over = ended or truncated
        returns.append(total)
    return returns


class Logged(BaseCallback):
    """The metrics of every update."""

    def _on_training_start(self):
        self.updates = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if "train/loss" in self.logger.name_to_value:
            self.updates.append(dict(self.logger.name_to_value))
            self.logger.name_to_value.clear()


def learn(agent, rollouts):
    """The metrics of each of these rollouts' updates, and of one more rollout that is not learned from."""
    callback = Logged()
    agent.learn(rollouts * agent.n_steps * agent.n_envs, callback, log_interval=None, reset_num_timesteps=False)
    callback._on_rollout_start()
    return callback.updates


# What is cloned


@pytest.mark.parametrize("backbone", ["mingru", "lstm"])
def test_a_task_that_needs_memory_is_solved_before_the_first_step(backbone):
    agent = make_ppo(vector(Recall), backbone=backbone)
    assert min(returns_of(agent, Recall())) == 0
    agent.pretrain(recall_episodes(), 100, batch_size=32, learning_rate=1e-2)
    assert min(returns_of(agent, Recall())) == 1
    assert agent.num_timesteps == 0


class LateStart(Recall):
    action_space = gym.spaces.Discrete(2, start=5)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(action - 5)


@pytest.mark.parametrize("counted_from_0", [False, True])
def test_choices_are_counted_from_the_start_of_their_space(counted_from_0):
    episodes = record(LateStart(), lambda seen: np.int64(5 + (seen[0][0] > 0)), 64)
    agent = make_ppo(vector(LateStart))
    agent.pretrain(episodes, 100, batch_size=32, learning_rate=1e-2)
    assert min(returns_of(agent, LateStart())) == 1


class Reach(gym.Env):
    """Pays an action that is what was shown in the first of four steps."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.goal = 0, self.np_random.uniform(-1, 1)
        return np.array([self.goal, 1], np.float32), {}

    def step(self, action):
        self.t += 1
        error = abs(float(action[0]) - self.goal)
        return np.zeros(2, np.float32), -error, self.t == 4, False, {}


def test_continuous_actions_are_cloned_and_their_deviation_stays_above_a_bound():
    episodes = record(Reach(), lambda seen: seen[0][:1], 64)
    agent = make_ppo(VecNormalize(vector(Reach)))
    agent.pretrain(episodes, 300, batch_size=32, learning_rate=1e-2)
    normalizer = agent.get_vec_normalize_env()
    shown = normalizer.normalize_obs(np.array([[0.5, 1], [-0.5, 1]], np.float32))
    _, state = agent.predict(shown, deterministic=True)
    later = normalizer.normalize_obs(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(agent.predict(later, state, deterministic=True)[0], [[0.5], [-0.5]], atol=0.15)
    assert np.log(0.05) < agent.policy.log_std.item() < np.log(0.1)


def test_the_deviation_of_data_that_never_vary_is_that_bound():
    episodes = record(Reach(), lambda seen: np.array([0.3], np.float32), 16)
    agent = make_ppo(vector(Reach))
    agent.pretrain(episodes, 300, batch_size=8, learning_rate=1e-2)
    assert agent.policy.log_std.item() == pytest.approx(np.log(0.05))


# The loss


def test_padding_and_what_lies_behind_it_are_nothing_to_the_loss():
    """Law 8: a batch of short episodes has the loss, and the gradient, of the episodes one by one."""
    agent = make_ppo(vector(lambda: Noise("box", "box")))
    policy, lengths = agent.policy, [3, 7, 1, 5]
    draw = torch.Generator().manual_seed(0)
    observations = torch.randn(4, 7, 3, generator=draw)
    actions = torch.randn(4, 7, 2, generator=draw)
    values = torch.randn(4, 7, generator=draw)
    values[1, 2:] = torch.nan  # unknown
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    losses = pretrain_loss(policy, observations, actions, values, mask)
    together = torch.autograd.grad(sum(losses), list(policy.parameters()), allow_unused=True)

    sums, known = [0.0, 0.0], 0
    for i, length in enumerate(lengths):
        one = (part[i : i + 1, :length] for part in (observations, actions, values, mask))
        loss, value_loss = pretrain_loss(policy, *one)
        n = int(values[i, :length].isfinite().sum())
        sums = [sums[0] + loss * length, sums[1] + value_loss * n]
        known += n
    alone = [sums[0] / sum(lengths), sums[1] / known]
    torch.testing.assert_close(list(losses), alone)
    apart = torch.autograd.grad(sum(alone), list(policy.parameters()), allow_unused=True)
    torch.testing.assert_close(together, apart)

    observations[~mask], actions[~mask], values[~mask] = 9.0, 9.0, torch.nan
    assert torch.equal(torch.stack(pretrain_loss(policy, observations, actions, values, mask)), torch.stack(losses))


def test_both_samplers_cut_the_same_columns(make_episodes):
    episodes = make_episodes([4, 9, 2])
    column = {"value": np.arange(15, dtype=np.float32)}
    batches = [kind(episodes, 5, "cpu", column).sample(6, 0, 1) for kind in (SequenceSampler, HostSampler)]
    for batch in batches:
        first = batch["observation"][..., 0]  # the row
        assert torch.equal(batch["value"][batch["mask"]], first[batch["mask"]])


def test_the_critic_learns_discounted_returns_but_not_those_that_were_cut_off():
    episodes = toy_episodes(4)  # 12 steps, truncated
    agent = make_ppo(vector(lambda: Noise()), gamma=0.5)
    rewards = episodes.rewards.reshape(4, 12).astype(np.float64)
    expected = np.zeros((4, 13))
    for t in reversed(range(12)):
        expected[:, t] = rewards[:, t] + 0.5 * expected[:, t + 1]
    found = value_targets(agent, episodes).reshape(4, 12)
    np.testing.assert_allclose(found[:, :8], expected[:, :8], rtol=1e-5)  # 0.5^5 of the return is missing at most
    assert np.isnan(found[:, 8:]).all()
    episodes.terminated[1] = True
    found = value_targets(agent, episodes).reshape(4, 12)
    np.testing.assert_allclose(found[1], expected[1, :12], rtol=1e-5)


# Statistics


class Recording(gym.Env):
    """Plays recorded episodes, whatever is done."""

    def __init__(self, episodes):
        width = episodes.observation_dim
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space, self.episodes, self.episode = episodes.action_space, episodes, -1

    def reset(self, *, seed=None, options=None):
        self.episode = (self.episode + 1) % len(self.episodes)
        self.row = int(self.episodes.starts[self.episode])
        return self.episodes.observations[self.row], {}

    def step(self, action):
        reward = float(self.episodes.rewards[self.row])
        self.row += 1
        over = self.row == self.episodes.starts[self.episode] + self.episodes.lengths[self.episode]
        shown = self.episodes.observations[min(self.row, self.episodes.n_steps - 1)]
        return shown, reward, bool(over), False, {}


def test_statistics_are_those_of_the_data_and_observations_keep_them():
    episodes = toy_episodes(20)
    agent = make_ppo(VecNormalize(vector(lambda: gym.make("ToyBox-v0")), gamma=0.9), gamma=0.9)
    agent.pretrain(episodes, 3, batch_size=4)
    ours = agent.get_vec_normalize_env()
    np.testing.assert_allclose(ours.obs_rms.mean, episodes.observations.mean(0, np.float64))
    np.testing.assert_allclose(ours.obs_rms.var, episodes.observations.var(0, np.float64))
    assert ours.ret_rms.count == 240

    seen = VecNormalize(DummyVecEnv([lambda: Recording(episodes)]), gamma=0.9)
    seen.reset()
    for _ in range(240):
        seen.step(np.zeros((1, 1), np.float32))
    np.testing.assert_allclose(ours.ret_rms.mean, seen.ret_rms.mean, rtol=1e-5)
    np.testing.assert_allclose(ours.ret_rms.var, seen.ret_rms.var, rtol=1e-5)

    targets = value_targets(agent, episodes)
    rewards = seen.normalize_reward(episodes.rewards)
    expected = discounted_sums(rewards[::-1], episodes.lengths, 0.9)[::-1]
    # 0.9^left is more than 5 % all along these short episodes, so that nothing would be known
    assert np.isnan(targets).all()
    episodes.terminated[:] = True
    np.testing.assert_allclose(value_targets(agent, episodes), expected, rtol=1e-4)

    learn(agent, 1)
    assert ours.ret_rms.count == 240 + 48  # those of the rollout
    # The observations' stay: under others the policy would do other things.
    np.testing.assert_allclose(ours.obs_rms.mean, episodes.observations.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(ours.obs_rms.var, episodes.observations.var(0, np.float64), rtol=1e-6)


# What keeps PPO from undoing it


@pytest.mark.parametrize("backbone", ["mingru", "lstm", "transformer"])
@pytest.mark.parametrize("changes", [{}, {"separate_critic": False}, {"reset_on_done": False}])
def test_the_critic_learns_alone_at_first_and_the_policy_stays_the_pretrained_one(backbone, changes):
    agent = make_ppo(VecNormalize(vector(Recall)), backbone=backbone, sequence_length=8, **changes)
    agent.pretrain(recall_episodes(), 20, batch_size=8, critic_first=144, kl_steps=10_000)
    actor = [parameter.clone() for parameter in actor_parameters(agent.policy)]
    critic = [parameter.clone() for parameter in critic_parameters(agent.policy)]
    updates = learn(agent, 3)
    assert all(map(torch.equal, actor, actor_parameters(agent.policy)))
    assert not any(map(torch.equal, critic, critic_parameters(agent.policy)))
    for update in updates:  # the copy carries a memory of its own through three rollouts
        assert update["train/first_ratio_error"] < 1e-5
        assert abs(update["train/pretrained_kl"]) < 1e-6
        assert update["train/value_loss"] > 0
    learn(agent, 1)
    assert not all(map(torch.equal, actor, actor_parameters(agent.policy)))


@pytest.mark.parametrize("env", [Recall, Reach])
def test_the_divergence_from_the_pretrained_policy_begins_at_nothing_and_its_weight_fades_to_nothing(env):
    env.action_space.seed(0)
    episodes = record(env(), lambda seen: env.action_space.sample(), 32)
    agent = make_ppo(vector(env), learning_rate=1e-2)
    agent.pretrain(episodes, 20, batch_size=8, critic_first=48, kl_coef=0.5, kl_steps=192)
    coefficients, settings = [], agent._settings
    agent._settings = lambda: (coefficients.append(settings()["kl_coef"]), settings())[1]
    updates = learn(agent, 5)
    np.testing.assert_allclose(coefficients, [0.5, 0.375, 0.25, 0.125, 0])
    divergences = [update["train/pretrained_kl"] for update in updates[:4]]
    assert abs(divergences[0]) < 1e-6 < 1e-5 < min(divergences[1:])
    assert "train/pretrained_kl" not in updates[4]
    assert all(update["train/first_ratio_error"] < 1e-5 for update in updates)
    assert agent.anchor is None


def test_the_penalty_holds_the_policy_back():
    Recall.action_space.seed(0)
    episodes = record(Recall(), lambda seen: Recall.action_space.sample(), 32)

    def moved(kl_coef):
        agent = make_ppo(vector(Recall), learning_rate=1e-2)
        agent.pretrain(episodes, 20, batch_size=8, critic_first=0, kl_coef=kl_coef, kl_steps=10**9)
        return learn(agent, 8)[-1]["train/pretrained_kl"]

    assert 0 < moved(10.0) < 0.1 * moved(1e-9)


def test_a_forbidden_action_is_nothing_to_the_divergence():
    agent = make_ppo(vector(lambda: MaskedNoise("box", "discrete")), learning_rate=1e-2)
    episodes = record(Noise("box", "discrete"), lambda seen: 1, 16)
    agent.pretrain(episodes, 10, batch_size=8, critic_first=48)
    divergences = [update["train/pretrained_kl"] for update in learn(agent, 3)]
    assert abs(divergences[0]) < 1e-6 < divergences[1] < 10


def test_a_penalty_without_weight_costs_no_copy():
    agent = make_ppo(vector(Recall))
    agent.pretrain(recall_episodes(8), 1, batch_size=4, kl_coef=0)
    assert agent.anchor.holds_actor
    assert agent.anchor.reference is None


def test_without_a_pretraining_there_is_no_anchor():
    agent = make_ppo(vector(Recall))
    assert "train/pretrained_kl" not in learn(agent, 1)[0]
    assert agent.anchor is None
    assert agent._sequences().reference is None


# On the command line


def write_maze(path="maze.hdf5"):
    write_hdf5(maze_episodes(), path)
    return path


def maze_run(*arguments):
    dataset = ["--pretrain.dataset", write_maze(), *SHORT, "--pretrain.critic_first", "64"]
    return [*TINY, "--env", "TMaze10-v0", *NORMALIZED, *dataset, "--evaluation.episodes", "1", *arguments]


@pytest.mark.parametrize("kl_steps", ["128", "100000"])
def test_a_run_that_was_pretrained_goes_on_to_the_same_bits(kl_steps, capsys):
    arguments = maze_run("--pretrain.kl_steps", kl_steps, "--steps", "160", "--checkpoint_every", "32", "--keep", "9")
    whole = finish("whole", *arguments)
    assert "pretraining 20/20  loss" in capsys.readouterr().out
    for left in (2, 4):  # with a frozen actor or without, with a copy of it or without
        shutil.copytree("whole", "cut")
        for path in checkpoints("cut")[-left:]:
            shutil.rmtree(path)
        Path("maze.hdf5").unlink(missing_ok=True)  # it is not read again
        assert_same(whole, finish("cut", "--resume", "true"))
        assert metrics("cut") == metrics("whole")
        shutil.rmtree("cut")


@pytest.mark.parametrize("moment", ["pretraining", "rollout"])
def test_a_signal_leaves_a_run_that_goes_on_to_the_same_bits(moment, monkeypatch, capsys):
    arguments = maze_run("--steps", "96")
    whole = finish("whole", *arguments)
    owner, name = {"pretraining": (pretraining, "_update"), "rollout": (DummyVecEnv, "step_wait")}[moment]
    function, calls = getattr(owner, name), iter(range(10**6))

    def stop(*inputs):
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        assert train.main([*arguments, "--run_dir", "cut", "--threads", "1"]) == 143
    assert latest_checkpoint("cut").name == "step_00000000"
    assert ("anchor" in read_checkpoint(latest_checkpoint("cut"))[1]) == (moment == "rollout")
    capsys.readouterr()
    assert_same(whole, finish("cut", "--resume", "true"))
    said = capsys.readouterr().out
    assert "the pretraining begins again" in said
    assert metrics("cut") == metrics("whole")


def test_the_curve_of_the_pretraining_ends_where_ppo_begins():
    finish("run", *maze_run("--steps", "32"))
    lines = [line for line in metrics("run") if "pretrain/loss" in line]
    assert [line["step"] for line in lines] == list(range(-18, 1, 2))
    assert lines[-1]["pretrain/loss"] < lines[0]["pretrain/loss"]
    assert lines[-1]["pretrain/value_loss"] >= 0


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("env_id", ["TMaze10-v0", "ToyBox-v0"])
def test_what_wrappers_show_of_the_step_before_is_made_of_the_data(env_id, flags):
    actions = gym.make(env_id).action_space
    recorded = []
    for env in (make_env(env_id), make_env(env_id, previous_action=flags[0], previous_reward=flags[1])):
        actions.seed(0)
        recorded.append(record(env, lambda seen: actions.sample(), 3))
    plain, shown = recorded
    np.testing.assert_array_equal(as_observed(plain, actions, *flags).observations, shown.observations)


def test_of_actions_beyond_the_bounds_what_the_environment_took_is_shown():
    def play(env, actions):
        seen, _ = env.reset(seed=0)
        return np.array([seen, *(env.step(action)[0] for action in actions)])[:-1]

    drawn = np.random.default_rng(0).normal(0, 2.5, (30, 1)).astype(np.float32)
    taken = np.clip(drawn, -2, 2)
    plain = make_env("Pendulum-v1")
    space = plain.action_space
    recorded = Episodes(
        observations=play(plain, taken),
        actions=drawn,
        rewards=np.zeros(30, np.float32),
        lengths=np.array([30]),
        terminated=np.array([False]),
        truncated=np.array([True]),
        action_space=gym.spaces.Box(-9, 9, (1,)),
        name="drawn",
    )
    shown = play(make_env("Pendulum-v1", previous_action=True), taken)
    np.testing.assert_allclose(as_observed(recorded, space, True, False).observations, shown, atol=1e-6)


def test_images_are_told_of_where_the_step_before_is_to_be_shown_too():
    episodes = dataclasses.replace(recall_episodes(8), parts={"": (1, 1, 3)}, known_statistics=None)
    with pytest.raises(DatasetError, match="pretraining needs rows of numbers"):
        as_observed(episodes, gym.spaces.Discrete(2), True, True)


def test_choices_for_an_environment_of_continuous_actions_are_one_line(capsys):
    assert train.main(maze_run("--env", "Pendulum-v1", "--previous_action", "true", "--run_dir", "run")) == 2
    assert_one_line(capsys, "takes actions of Discrete(4); the environment observes")


def test_a_run_with_the_wrappers_is_pretrained(capsys):
    finish("run", *maze_run("--steps", "32", "--previous_action", "true", "--previous_reward", "true"))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kl_coef": "much"}, "much"),
        ({"steps": -1}, "steps is -1"),
        ({"kl_steps": 1}, "anchor"),
        ({}, "of another model or version"),
    ],
)
def test_an_anchor_that_is_damaged_is_one_line(change, expected, capsys):
    finish("run", *maze_run("--steps", "32"))
    tensors, state = read_checkpoint(latest_checkpoint("run"))
    state["anchor"] = state["anchor"] | change if change else []
    shutil.rmtree("run/checkpoints")
    write_checkpoint("run/checkpoints/step_00000032", tensors, state)
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "64"]) == 2
    assert_one_line(capsys, expected)


def training_of(*arguments):
    lines = []
    return PPOTraining(load_config([*TINY, *arguments], schemas()), lines.append), lines


def test_a_dataset_of_another_environment_is_told():
    arguments = maze_run()[len(TINY) :]
    assert not training_of(*arguments)[1]
    _, lines = training_of(*arguments, "--env", "TMaze-v0", "--env_kwargs", "{length: 12}")
    assert lines == ["note: maze was recorded in TMaze10-v0, and PPO goes on in TMaze-v0 with length 12"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "ToyBox-v0"], "observes 2 numbers and takes actions of Discrete(4); the environment observes 2"),
        (["--env", "ToyPicture-v0"], "one row of numbers; the environment observes 1 × 36 × 36 numbers"),
        (["--pretrain.dataset", "embedded:nothing"], "embedded:nothing: unknown"),
        (["--pretrain.dataset", "nothing.hdf5"], "nothing.hdf5: no such file"),
        (["--pretrain.top_fraction", "0"], "top fraction must be in (0, 1], not 0"),
        (["--pretrain.updates", "0"], "updates"),
        (["--pretrain", "maze.hdf5"], "a field that has keys of its own"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(arguments, expected, capsys):
    command = maze_run("--steps", "32", "--run_dir", "run", *arguments)
    assert exit_code(train.main, command) == 2
    assert_one_line(capsys, expected)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(learning_rate=-1e-3), r"learning_rate: -0.001 does not conform to restriction v>0.0 and v<inf"),
        (dict(learning_rate=float("nan")), "learning_rate is a finite float, not nan"),
        (dict(updates=-5), "updates: -5 does not conform to restriction v>0"),
        (dict(updates=2.5), "updates is an int, not 2.5"),
        (dict(batch_size=0), r"batch_size: 0 does not conform to restriction v>=1 and v<=\d+"),
        (dict(context=-3), r"context: -3 does not conform to restriction v>=1 and v<=\d+"),
        (dict(kl_coef=float("nan")), "kl_coef is a finite float, not nan"),
        (dict(kl_coef=-0.2), "kl_coef: -0.2 does not conform to restriction v>=0"),
        (dict(kl_steps=-1), "kl_steps: -1 does not conform to restriction v>=0"),
        (dict(critic_first="all"), "critic_first is an int, not 'all'"),
        (dict(log_interval=0), "log_interval: 0 does not conform to restriction v>0"),
    ],
)
def test_what_a_pretraining_cannot_compute_with_is_one_line_and_nothing_is_learned(wrong, message):
    agent = make_ppo(vector(Recall))
    before = agent.policy.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(HyperparameterError, match=f"^{message}$"):
        agent.pretrain(recall_episodes(8), **{"updates": 2, "batch_size": 4, **wrong})
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


def test_a_number_of_updates_of_a_pretraining_may_be_a_whole_float():
    make_ppo(vector(Recall)).pretrain(recall_episodes(8), np.float32(2), batch_size=4.0, kl_steps=1e6)


def test_what_an_agent_cannot_learn_from_is_an_error():
    episodes = recall_episodes(8)
    image = make_ppo(DummyVecEnv([lambda: Noise("image", "discrete")]), "CnnPolicy")
    with pytest.raises(EnvError, match="observes 1 × 36 × 36 numbers"):
        image.pretrain(episodes)
    parts = make_ppo(vector(lambda: Noise("dict", "discrete")), "MultiInputPolicy")
    with pytest.raises(EnvError, match="observes a: 2 numbers, b: Discrete"):
        parts.pretrain(episodes)
    with pytest.raises(HyperparameterError, match="use_sde must be false"):
        make_ppo(vector(Reach), use_sde=True).pretrain(episodes)
    with pytest.raises(DatasetError, match=r"observes 2 numbers .* the environment observes 3 numbers"):
        make_ppo(vector(lambda: Noise("box", "discrete"))).pretrain(episodes)
