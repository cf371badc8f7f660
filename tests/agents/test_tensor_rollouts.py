"""RecurrentPPO in environments of tensors: what is learned from is what the same environments give as arrays."""

import math
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from memory_tasks import RatioErrors, make_ppo
from ppo_runs import NORMALIZED, TINY
from tensor_envs import TensorNoise, Told
from unroll.agents import RecurrentPPO
from unroll.agents.common.callbacks import StopOnSignal
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.ppo import tensor_rollouts
from unroll.agents.ppo.rollouts import RecurrentOnPolicyAlgorithm
from unroll.agents.ppo.tensor_buffer import TensorRolloutBuffer, to_host, torch_type
from unroll.agents.ppo.tensor_rollouts import TensorRollout, check_tensor_env
from unroll.commands import evaluate, train
from unroll.envs import make_vec_env
from unroll.envs.tensor import PreviousTensorStep, TensorVector
from unroll.envs.tensor_tasks import make_tensor_env
from unroll.errors import EnvError, TrainingError
from unroll.policies.backbones import BACKBONES, map_state

TENSOR = [*TINY, "--vector", "tensor"]
FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


class Collect(BaseCallback):
    """Keeps what each rollout was learned from."""

    def _on_training_start(self):
        self.found = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        rows = {name: torch.as_tensor(getattr(buffer, name)).double().clone() for name in FIELDS}
        self.found.append((rows, map_state(torch.clone, tuple(self.model._states))))


def learned(env, as_arrays, monkeypatch, normalized=False, **kwargs):
    """Three rollouts of an agent and what it is then, on the device or by way of arrays."""
    env = TensorVector(env)
    if normalized:
        env = VecNormalize(env, gamma=0.9, clip_obs=1.5, clip_reward=1.2)
    callback = Collect()
    with monkeypatch.context() as patch:
        if as_arrays:
            patch.setattr(RecurrentOnPolicyAlgorithm, "_buffer_class", lambda self: None)
        agent = make_ppo(env, **kwargs)
        assert isinstance(agent.rollout_buffer, TensorRolloutBuffer) != as_arrays
        # Without updates a rounding does not grow from rollout to rollout.
        agent.train = lambda: None
        agent.learn(3 * agent.n_steps * agent.n_envs, callback)
    return agent, callback.found


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(action="box"),
        dict(action="multidiscrete", sequence_length=4),
        dict(normalized=True, sequence_length=8),
        dict(action="box", normalized=True, separate_critic=False, sequence_length=4),
        dict(reset_on_done=False, sequence_length=8),
        dict(action="box", use_sde=True, sde_sample_freq=4),
        dict(backbone="lstm", separate_critic=False),
        # of seed 0 a pendulum makes a rounding a hundred times as large
        dict(task="PendulumNoVel-v1", n_steps=80, sequence_length=20, normalized=True, seed=1),
        dict(task="TMaze10-v0", shows_previous=True, n_steps=32, normalized=True),
        dict(backbone="transformer", backbone_options={"window": 5}, sequence_length=4),
    ],
    ids=str,
)
def test_a_rollout_is_that_of_the_same_environments_as_arrays(kwargs, monkeypatch):
    kwargs = dict(kwargs)
    action = kwargs.pop("action", "discrete")
    task = kwargs.pop("task", None)
    shows = kwargs.pop("shows_previous", False)
    pairs = []
    for as_arrays in (False, True):
        env = TensorNoise(action=action)
        if task:
            env = make_tensor_env(task, 3, previous_action=shows, previous_reward=shows)
        pairs.append(learned(env, as_arrays, monkeypatch, **kwargs))
    (ours, found), (theirs, expected) = pairs
    for (rows, states), (their_rows, their_states) in zip(found, expected, strict=True):
        for name in FIELDS:
            torch.testing.assert_close(rows[name], their_rows[name], atol=1e-4, rtol=1e-4, msg=name)
        if kwargs.get("backbone") != "transformer":  # whose cache keeps keys that nothing reads
            map_state(assert_close, states, their_states)
    starts = torch.stack([rows["episode_starts"] for rows, _ in found])
    assert 3 <= starts[:, 1:].sum() < starts.numel() / 3

    # What the next rollout begins with, and what was said of the episodes.
    np.testing.assert_allclose(ours._last_obs, theirs._last_obs, rtol=1e-5, atol=1e-6)
    assert ours._last_obs.dtype == theirs._last_obs.dtype
    assert ours._last_episode_starts.tolist() == theirs._last_episode_starts.tolist()
    played = [[episode[key] for episode in agent.ep_info_buffer] for agent in (ours, theirs) for key in "rl"]
    assert len(played[0]) >= 3
    np.testing.assert_allclose(sorted(played[0]), sorted(played[2]), rtol=1e-4)
    assert sorted(played[1]) == sorted(played[3])
    if kwargs.get("normalized"):
        for one, other in zip(statistics(ours), statistics(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def assert_close(one, other):
    torch.testing.assert_close(one, other)
    return one


def statistics(agent):
    """The numbers of a VecNormalize."""
    env = agent.get_vec_normalize_env()
    running = (env.obs_rms, env.ret_rms)
    return [env.returns, *(number for one in running for number in (one.mean, one.var, one.count))]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_the_ratio_is_one_before_every_first_update(backbone, action):
    options = {"window": 5} if backbone in ("transformer", "sharnn") else {}
    env = VecNormalize(TensorVector(TensorNoise(action=action)))
    agent = make_ppo(env, backbone=backbone, backbone_options=options, sequence_length=8, learning_rate=1e-2)
    callback = RatioErrors()
    agent.learn(4 * agent.n_steps * agent.n_envs, callback, log_interval=None)
    assert len(callback.logged) == 3
    assert max(callback.logged) < 1e-5
    sequences = agent._sequences()
    assert sequences.reset[:, 1:].any()
    assert not sequences.reset[:, 0].all()


class Whole(TensorNoise):
    """Its noise in whole numbers, of this type or, for comparison, as floats."""

    def __init__(self, dtype):
        super().__init__()
        self.single_observation_space = spaces.Box(0, 200, (3,), dtype)

    def noise(self):
        return (100 + 30 * super().noise()).clamp(0, 200).to(torch_type(self.single_observation_space.dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_whole_numbers_that_are_normalised_are_kept_as_they_were_shown(dtype):
    env = VecNormalize(TensorVector(Whole(dtype)))
    agent = make_ppo(env, sequence_length=8, learning_rate=1e-2)
    callback = RatioErrors()
    agent.learn(4 * agent.n_steps * agent.n_envs, callback, log_interval=None)
    assert len(callback.logged) == 3
    assert max(callback.logged) < 1e-5
    assert (agent.rollout_buffer.observations % 1 != 0).all()
    assert agent._last_obs.dtype == np.float32


def test_advantages_are_stable_baselines3s():
    rng = np.random.default_rng(0)
    space = spaces.Box(-1, 1, (1,), np.float32)
    sizes = dict(device="cpu", gae_lambda=0.8, gamma=0.97, n_envs=5)
    ours = TensorRolloutBuffer(33, space, spaces.Discrete(2), **sizes)
    theirs = RolloutBuffer(33, space, spaces.Discrete(2), **sizes)
    for name in ("rewards", "values"):
        numbers = rng.normal(size=(33, 5)).astype(np.float32)
        getattr(theirs, name)[:] = numbers
        getattr(ours, name)[:] = torch.as_tensor(numbers)
    starts = rng.random((34, 5)) < 0.2
    theirs.episode_starts[:] = starts[:-1]
    ours.episode_starts[:] = torch.as_tensor(starts[:-1])
    last = torch.randn(5, 1)
    ours.compute_returns_and_advantage(last, torch.as_tensor(starts[-1]))
    theirs.compute_returns_and_advantage(last, starts[-1])
    np.testing.assert_allclose(ours.advantages, theirs.advantages, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-5, atol=1e-6)


def test_a_truncation_is_worth_its_last_observation_and_an_end_nothing(monkeypatch):
    """With a critic that says 10 everywhere, γ · 10 is added where an episode was truncated alone."""
    agent = make_ppo(make_tensor_env("CartPole-v1", 4), n_steps=64, gamma=0.5)
    task = agent.env.unwrapped.env
    task.max_steps = 20  # with random actions some episodes are over before and some are not
    torch.nn.init.zeros_(agent.policy.value_net.weight)
    torch.nn.init.constant_(agent.policy.value_net.bias, 10.0)
    ends = []
    step = task.step

    def watched(actions):
        result = step(actions)
        ends.append(torch.stack(result[2:4]))
        return result

    task.step = watched
    agent.train = lambda: None
    agent.learn(1)
    terminated, truncated = torch.stack(ends, 1)
    cut = truncated & ~terminated  # a pole may fall in the last step
    assert terminated.any()
    assert cut.any()
    assert set(agent.rollout_buffer.rewards[cut].tolist()) == {6.0}
    assert set(agent.rollout_buffer.rewards[~cut].tolist()) == {1.0}


def test_without_last_observations_the_value_of_the_step_stands_for_theirs():
    agent = make_ppo(TensorNoise(shows_last=False), gamma=0.5)
    agent.train = lambda: None
    agent.learn(1)
    buffer = agent.rollout_buffer
    added = buffer.rewards - buffer.raw_rewards
    torch.testing.assert_close(added[added != 0], 0.5 * buffer.values[added != 0])
    assert 0 < (added != 0).sum() < buffer.episode_starts.sum() + 3


class ShownAtEnds(TensorNoise):
    """Says in steps in which an episode ends what it showed last, but for the first step with a truncation."""

    cuts = 0

    def step(self, actions):
        *result, info = super().step(actions)
        _, _, terminated, truncated = result
        self.cuts += int((truncated & ~terminated).any())
        return *result, info if (terminated | truncated).any() and self.cuts != 1 else {}


def test_last_observations_may_be_shown_where_an_episode_ends_alone():
    found = []
    for kind in (TensorNoise, ShownAtEnds):
        agent = make_ppo(kind(), gamma=0.5, sequence_length=8, n_steps=64)
        agent.train = lambda: None
        agent.learn(1)
        found.append(agent.rollout_buffer)
    always, ends = found
    cut = (always.rewards != always.raw_rewards).nonzero().tolist()
    assert len({t for t, _ in cut}) > 2
    for t, i in cut:
        if t > cut[0][0]:
            assert ends.rewards[t, i] == always.rewards[t, i]
        else:
            added = float(ends.rewards[t, i] - ends.raw_rewards[t, i])
            assert added == pytest.approx(0.5 * float(ends.values[t, i]), abs=1e-6)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (2, 2), ()], ids=str)
def test_actions_have_the_shape_of_their_space(shape, squash):
    taken = []

    class Shaped(Told):
        def __init__(self):
            super().__init__()
            self.single_action_space = spaces.Box(-0.5, 0.25, shape, np.float32)

        def step(self, actions):
            taken.append(actions)
            return super().step(actions)

    kwargs = dict(policy_kwargs=dict(d_model=8, squash_output=squash), use_sde=squash)
    RecurrentPPO("MlpPolicy", PreviousTensorStep(Shaped()), n_steps=8, device="cpu", **kwargs).learn(16)
    assert {tuple(actions.shape) for actions in taken} == {(2, *shape)}
    assert all((actions >= -0.5).all() and (actions <= 0.25).all() for actions in taken)


def test_nothing_of_a_step_is_read_by_the_host_and_all_is_copied_at_once(monkeypatch):
    """On PyTorch's device without numbers, whatever asks for one fails."""
    copies = []
    monkeypatch.setattr(tensor_rollouts, "to_host", lambda parts: copies.append(1) or to_host(parts))
    for action in ("box", "discrete"):
        env = VecNormalize(TensorVector(TensorNoise(action=action)))
        agent = make_ppo(env)
        agent.learn(agent.n_steps * agent.n_envs)
        rollout = TensorRollout(agent, env, agent.rollout_buffer)
        fake(agent, rollout)
        for _ in range(3):
            with torch.inference_mode():
                seen = rollout.step()
        assert all(part.is_meta for part in seen.values())
    assert len(copies) == 2


def fake(agent, rollout):
    """Put an agent, its rollout and its environments on the device without numbers."""
    meta = torch.device("meta")
    agent.policy.to(meta)
    rollout.bounds = None if rollout.bounds is None else tuple(bound.to(meta) for bound in rollout.bounds)
    rollout.state = map_state(lambda part: part.to(meta), rollout.state)
    for name in ("observations", "starts"):
        setattr(rollout, name, getattr(rollout, name).to(meta))
    for name in ("mean", "variance", "count", "returns"):
        setattr(rollout.normalizer, name, getattr(rollout.normalizer, name).to(meta))
    rollout.buffer.device = meta
    rollout.buffer.reset()

    def step(actions):
        assert actions.is_meta
        n = rollout.vector.num_envs
        flags = torch.empty(n, dtype=torch.bool, device=meta)
        seen = torch.empty(n, 3, device=meta)
        return seen, torch.empty(n, device=meta), flags, flags, {"final_obs": seen}

    rollout.vector.env.step = step


def test_what_goes_to_the_host_is_there_what_it_was():
    parts = {
        "a": torch.tensor([[1.5, -2.0]]),
        "b": torch.tensor([True, False]),
        "c": torch.tensor(2**40 + 1),
        "d": torch.tensor([math.pi], dtype=torch.float64),
    }
    for name, value in to_host(parts).items():
        assert torch.equal(torch.as_tensor(value), parts[name])
        assert torch.as_tensor(value).dtype == parts[name].dtype


def test_a_simulator_may_write_into_what_it_showed():
    agent = make_ppo(Told(), n_steps=10)
    agent.learn(20)
    agent.learn(20)
    assert agent.rollout_buffer.observations[:, 0, 0].tolist() == [0, 1, 2, 3, 4] * 2
    assert [(episode["r"], episode["l"]) for episode in agent.ep_info_buffer] == [(5.0, 5)] * 4


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("faults", "error", "said"),
    [
        ({3: ("observation", math.nan)}, EnvError, "the observation of environment 1 is not finite at step 6"),
        ({4: ("reward", math.inf), 6: ("observation", math.nan)}, EnvError, "reward of environment 1 is inf at step 8"),
        ({5: ("last", math.nan)}, EnvError, "last observation of an episode of environment 1 is not finite at step 10"),
    ],
)
def test_what_is_not_finite_is_said_once_a_rollout_with_its_first_step(faults, error, said, normalized):
    env = TensorVector(Told(faults))
    agent = make_ppo(VecNormalize(env) if normalized else env)
    with pytest.raises(error, match=said) as caught:
        agent.learn(32)
    assert "\n" not in str(caught.value)
    for parameter in agent.policy.parameters():
        assert torch.isfinite(parameter).all()


def test_rewards_that_are_too_large_and_a_policy_that_is_not_finite_are_said():
    with pytest.raises(EnvError, match=r"the rewards of environment 1 are up to 1e\+30"):
        make_ppo(Told({3: ("reward", 1e30)})).learn(32)
    agent = make_ppo(Told())
    torch.nn.init.constant_(agent.policy.action_net.bias, math.nan)
    with pytest.raises(TrainingError, match="the distribution of actions is not finite at step 2, learning rate"):
        agent.learn(32)


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.num_timesteps < self.step


@pytest.mark.parametrize("separate_critic", [True, False])
def test_learning_that_a_callback_ends_in_mid_rollout_goes_on_where_it_was(separate_critic):
    agent = make_ppo(Told(), n_steps=10, separate_critic=separate_critic, sequence_length=5)
    whole = make_ppo(Told(), n_steps=10, separate_critic=separate_critic, sequence_length=5)
    agent.train = whole.train = lambda: None
    agent.learn(100, StopAt(14))
    assert agent.num_timesteps == 14
    assert agent._last_obs.tolist() == [[2.0], [2.0]]
    assert agent.env.unwrapped.lengths.tolist() == [2, 2]
    whole.learn(20)
    agent.learn(6, reset_num_timesteps=False)
    # Three steps more than the whole one's ten, of which the state knows nothing but observations.
    assert agent.num_timesteps == 34
    assert agent.rollout_buffer.observations[:, 0, 0].tolist() == [2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [episode["l"] for episode in agent.ep_info_buffer] == [5] * len(agent.ep_info_buffer)
    # The same place of an episode: the same memory of both actor and critic.
    map_state(assert_close, agent._states[1], memory_at(whole, 2))


def test_a_callback_that_reads_a_step_reads_arrays():
    seen = []

    def look(variables, _):
        seen.append((variables["new_obs"][1, 0], variables["rewards"].sum(), len(variables["dones"])))
        return variables["infos"] == []

    agent = make_ppo(Told(), n_steps=10)
    agent.learn(1000, [StopTrainingOnMaxEpisodes(3), ConvertCallback(look)])
    assert agent.num_timesteps == 2 * 15  # three episodes for each environment
    assert seen[:5] == [(1, 2, 2), (2, 2, 2), (3, 2, 2), (4, 2, 2), (0, 2, 2)]


def test_what_a_callback_reads_of_a_step_is_computed_with_as_an_array():
    seen = {}

    def look(variables, _):
        rewards, dones = variables["rewards"], variables["dones"]
        seen["equal"] = dones == 1
        seen["sums"] = [rewards + 1, 1 + rewards, np.zeros(2) + rewards, rewards * dones, rewards * rewards]
        seen["not"] = ~dones
        total = np.zeros(2)
        total += rewards
        seen["total"] = total
        twice = rewards
        twice += rewards
        seen["changed"] = [twice, pickle.loads(pickle.dumps(rewards))]
        seen["actions"] = [variables[name][0] for name in ("actions", "clipped_actions")]
        with pytest.raises(ValueError, match="ambiguous"):
            bool(dones)
        return variables["n_steps"] != 4

    make_ppo(Told(), n_steps=10).learn(20, look)
    assert seen["equal"].tolist() == [True, True]  # the fifth step ends an episode
    assert [part.tolist() for part in seen["sums"]] == [[2, 2]] * 2 + [[1, 1]] * 3
    assert seen["not"].tolist() == [False, False]
    assert seen["total"].tolist() == [1, 1]
    assert [part.tolist() for part in seen["changed"]] == [[2, 2]] * 2
    assert set(seen["actions"]) <= {0, 1}


def test_what_a_callback_keeps_of_a_step_stays_as_it_was():
    kept = []
    make_ppo(Told(), n_steps=10).learn(20, lambda names, _: kept.append(np.asarray(names["new_obs"])) or True)
    assert [float(shown[0, 0]) for shown in kept] == [1, 2, 3, 4, 0] * 2


def test_an_environment_of_tensors_is_given_tensors_by_an_evaluation_too():
    class Strict(TensorNoise):
        def step(self, actions):
            assert isinstance(actions, torch.Tensor)
            return super().step(actions)

    agent = make_ppo(Strict(action="box"))
    agent.learn(48, EvalCallback(TensorVector(Strict(action="box")), n_eval_episodes=2, eval_freq=8, verbose=0))
    evaluate_policy(agent, agent.get_env(), n_eval_episodes=3)


def memory_at(agent, steps):
    """The memory after the first steps of an episode of Told."""
    state = agent.policy.initial_state(2)
    with torch.no_grad():
        for t in range(steps):
            _, _, _, state = agent.policy(torch.full((2, 1), float(t)), state)
    return state


def test_stable_baselines3s_evaluations_and_files_work(tmp_path):
    env = VecNormalize(TensorVector(make_tensor_env("CartPoleNoVel-v1", 4)))
    test = VecNormalize(make_vec_env("CartPoleNoVel-v1", 2), training=False, norm_reward=False)
    agent = make_ppo(env)
    agent.learn(128, EvalCallback(test, n_eval_episodes=2, eval_freq=16, verbose=0, warn=False))
    assert test.obs_rms.count == pytest.approx(4 + 64, abs=0.01)  # of the rollout before, and of the reset
    assert evaluate_policy(agent, agent.get_env(), n_eval_episodes=4, warn=False)[0] > 0

    agent.save(tmp_path / "agent")
    again = RecurrentPPO.load(tmp_path / "agent", env=make_tensor_env("CartPoleNoVel-v1", 8), device="cpu")
    assert again.learn(256).num_timesteps == 256
    arrays = RecurrentPPO.load(tmp_path / "agent", env=make_vec_env("CartPoleNoVel-v1", 2), device="cpu")
    assert type(arrays.rollout_buffer) is RolloutBuffer
    with pytest.raises(EnvError, match="set_env: both environments are of tensors"):
        again.set_env(make_vec_env("CartPoleNoVel-v1", 8))


def test_what_cannot_be_learned_in_is_said():
    class Pairs(TensorNoise):
        def __init__(self):
            super().__init__()
            self.single_observation_space = spaces.Dict(a=spaces.Box(-1, 1, (1,)))

    class Masked(TensorNoise):
        def action_masks(self):
            """Nothing that is asked for."""

    class Integers(TensorNoise):
        def __init__(self):
            super().__init__()
            self.single_action_space = spaces.Discrete(3, start=1)

    with pytest.raises(EnvError, match=r"Pairs observes .*; environments of tensors observe a Box"):
        make_ppo(Pairs())
    with pytest.raises(EnvError, match=r"Masked has action_masks\(\)"):
        make_ppo(Masked())
    with pytest.raises(EnvError, match="Integers takes actions of"):
        make_ppo(Integers())
    elsewhere = TensorNoise()
    elsewhere.device = torch.device("meta")
    with pytest.raises(EnvError, match="the tensors of TensorNoise are on meta, and the policy is on cpu"):
        make_ppo(elsewhere)


def test_the_tensors_are_on_the_very_gpu_of_the_policy(monkeypatch):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    second = TensorNoise()
    second.device = torch.device("cuda:1")
    check_tensor_env(TensorVector(second), torch.device("cuda"))
    with pytest.raises(EnvError, match="are on cuda:1, and the policy is on cuda:0"):
        check_tensor_env(TensorVector(second), torch.device("cuda:0"))


class Scaled(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 0.01 * rewards, dones, infos


@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
def test_wrappers_that_rollouts_would_pass_by_are_refused():
    vector = TensorVector(TensorNoise())
    for wrapped in (Scaled(vector), VecMonitor(vector), VecFrameStack(vector, 2), VecNormalize(Scaled(vector))):
        with pytest.raises(EnvError, match=r"(Scaled|VecMonitor|VecFrameStack) around TensorNoise would be passed by"):
            make_ppo(wrapped)
    agent = make_ppo(VecNormalize(vector))
    with pytest.raises(EnvError, match="Scaled around TensorNoise would be passed by"):
        agent.set_env(Scaled(vector))


def test_images_with_their_channels_last_are_refused():
    class Pictures(TensorNoise):
        def __init__(self, shape):
            super().__init__()
            self.single_observation_space = spaces.Box(0, 255, shape, np.uint8)

        def noise(self):
            return torch.zeros(self.num_envs, *self.single_observation_space.shape, dtype=torch.uint8)

        def step(self, actions):
            flags = torch.zeros(self.num_envs, dtype=torch.bool)
            return self.noise(), torch.ones(self.num_envs), flags, flags, {}

    with pytest.raises(EnvError, match=r"Pictures shows images of \(8, 8, 3\); .* channels first"):
        make_ppo(Pictures((8, 8, 3)), "CnnPolicy")
    make_ppo(Pictures((3, 8, 8)), "CnnPolicy").learn(48)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env", "Hopper-v5"], "Hopper-v5 has no form of tensors; these have one: CartPole-v1"),
        (["--evaluation.reuse_envs", "true"], "evaluation.reuse_envs true is for environments of arrays"),
        (["--env_kwargs", "{sutton_barto_reward: true}"], "takes no arguments, not sutton_barto_reward"),
    ],
)
def test_the_command_says_in_one_line_what_has_no_tensors(arguments, said, capsys):
    assert train.main([*TENSOR, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "CartPoleNoVel-v1", *NORMALIZED],
        ["--env", "RepeatPrevious-v0", "--env_kwargs", "{k: 2}", "--backbone.name", "lstm"],
        ["--env", "TMaze10-v0", "--previous_action", "true", "--previous_reward", "true"],
    ],
    ids=["cartpole", "cards", "maze"],
)
@pytest.mark.usefixtures("in_a_folder")
def test_a_run_goes_on_in_the_middle_of_its_episodes_to_the_same_bits(arguments, capsys):
    arguments = [*TENSOR, *arguments, "--evaluation.episodes", "1", "--n_envs", "4", "--checkpoint_every", "64"]
    assert train.main([*arguments, "--steps", "320", "--run_dir", "whole"]) == 0
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/checkpoints/step_00000320")
    Path("cut/evaluation.json").unlink()
    tensors, state = read_checkpoint(latest_checkpoint("cut"))
    assert tensors["rollout.environments.env.elapsed"].max() > 0
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 0
    assert f"goes on at step {state['num_timesteps']}\n" in capsys.readouterr().out
    whole, cut = (read_checkpoint(f"{run}/checkpoints/step_00000320") for run in ("whole", "cut"))
    assert whole[0].keys() == cut[0].keys()
    for name, value in whole[0].items():
        assert torch.equal(value, cut[0][name]), name
    assert evaluate.main(["cut", "--episodes", "2"]) == 0


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_that_is_stopped_in_mid_rollout_goes_on_to_the_same_bits(monkeypatch):
    arguments = [*TENSOR, *NORMALIZED, "--n_envs", "4", "--evaluation.episodes", "0", "--steps", "256"]
    assert train.main([*arguments, "--run_dir", "whole"]) == 0
    on_step = StopOnSignal._on_step

    def heard(self):
        if self.num_timesteps == 152:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "_on_step", heard)
        assert train.main([*arguments, "--run_dir", "cut"]) == 143
    assert latest_checkpoint("cut").name == "step_00000128"
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 0
    whole, cut = (read_checkpoint(latest_checkpoint(run))[0] for run in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name


def test_the_first_steps_of_a_seed_are_those_of_the_seed():
    seen = []
    for seed in (0, 0, 1):
        agent = make_ppo(make_tensor_env("CartPole-v1", 2), seed=seed)
        seen.append(agent.learn(32).rollout_buffer.observations)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0][0], seen[2][0])
