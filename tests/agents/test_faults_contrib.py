"""What is written for sb3-contrib or expected by Stable-Baselines3 runs, or one line says what to write instead."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import Noise, make_ppo, vector
from ppo_runs import MAZE
from unroll.agents import RecurrentPPO
from unroll.commands import train
from unroll.errors import HyperparameterError
from unroll.policies.actor_critic import PLAIN

DOCS = Path(__file__).parents[2] / "docs" / "from_sb3_contrib.md"
# sb3-contrib 2.9.2's arguments, in order.
THEIRS = (
    *("policy", "env", "learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
    *("clip_range_vf", "normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm", "use_sde", "sde_sample_freq"),
    *("target_kl", "stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed", "device"),
    "_init_setup_model",
)


def test_positional_arguments_are_in_sb3_contribs_order():
    parameters = list(inspect.signature(RecurrentPPO.__init__).parameters.values())[1:]
    assert tuple(one.name for one in parameters[: len(THEIRS)]) == THEIRS
    assert all(one.kind == one.KEYWORD_ONLY for one in parameters[len(THEIRS) :])
    agent = RecurrentPPO("MlpPolicy", "CartPole-v1", 1e-3, 32, 32, 3, 0.9, 0.8, device="cpu")
    assert (agent.n_epochs, agent.gamma, agent.gae_lambda, agent.sequence_length) == (3, 0.9, 0.8, None)


def test_the_page_about_it_runs(capsys):
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(code) == 1
    exec(code[0], {})
    capsys.readouterr()


@pytest.mark.parametrize(
    ("policy_kwargs", "copies"),
    [({}, 2), (dict(shared_lstm=True, enable_critic_lstm=False), 1), (dict(enable_critic_lstm=True), 2)],
)
def test_lstm_policies_take_sb3_contribs_arguments(policy_kwargs, copies, tmp_path):
    sizes = dict(lstm_hidden_size=12, n_lstm_layers=2)
    agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, policy_kwargs=sizes | policy_kwargs, device="cpu")
    agent.learn(16)
    assert len(agent.policy.encoders) == copies
    assert agent.policy.encoder_kwargs == dict(backbone="lstm", d_model=12, n_layers=2, options=PLAIN)
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", device="cpu")
    agent.policy.save(tmp_path / "policy")
    policy = type(agent.policy).load(tmp_path / "policy", device="cpu")
    rows = np.zeros((3, 4), np.float32)
    for other in (loaded, policy):
        np.testing.assert_array_equal(
            other.predict(rows, deterministic=True)[0], agent.predict(rows, deterministic=True)[0]
        )


@pytest.mark.parametrize(
    ("policy", "policy_kwargs", "backbone"),
    [
        ("MlpLstmPolicy", dict(lstm_hidden_size=8), None),
        ("MlpLstmPolicy", dict(lstm_hidden_size=8, net_arch=[8]), "gru"),
        ("MlpLstmPolicy", dict(lstm_hidden_size=np.int64(8), shared_lstm=True, enable_critic_lstm=False), None),
        ("MlpPolicy", dict(d_model=8), "gru"),
        ("MlpPolicy", dict(d_model=8, backbone="gru"), None),
        ("MlpPolicy", dict(d_model=8), None),
        ("MlpPolicy", {}, None),
    ],
)
def test_load_takes_the_arguments_of_the_policy_that_the_constructor_took(policy, policy_kwargs, backbone, tmp_path):
    agent = RecurrentPPO(policy, "CartPole-v1", policy_kwargs=policy_kwargs, backbone=backbone, device="cpu")
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", policy_kwargs=policy_kwargs, device="cpu")
    assert loaded.policy_kwargs == agent.policy_kwargs
    for other in (dict(lstm_hidden_size=9), dict(d_model=9), dict(d_model=8, net_arch=[9]), dict(backbone="mamba")):
        with pytest.raises(HyperparameterError, match=r"^load\(.*agent\): policy_kwargs .* are not those in the zip, "):
            RecurrentPPO.load(tmp_path / "agent", policy_kwargs=other, device="cpu")


def test_load_takes_tuples_that_are_lists_in_the_zip(tmp_path):
    policy_kwargs = dict(d_model=8, optimizer_kwargs=dict(betas=(0.9, 0.95)))
    RecurrentPPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, device="cpu").save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", policy_kwargs=policy_kwargs, device="cpu")
    assert list(loaded.policy.optimizer.defaults["betas"]) == [0.9, 0.95]


def test_lstm_policies_have_sb3_contribs_default_sizes():
    agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu")
    assert agent.policy.encoder_kwargs == dict(backbone="lstm", d_model=256, n_layers=1, options=PLAIN)


@pytest.mark.parametrize(
    ("policy", "observation"), [("CnnLstmPolicy", "image"), ("MultiInputLstmPolicy", "dict of images")]
)
def test_lstm_policies_for_images_and_dicts(policy, observation):
    kwargs = dict(lstm_hidden_size=8)
    agent = RecurrentPPO(policy, vector(lambda: Noise(observation)), n_steps=8, policy_kwargs=kwargs, device="cpu")
    agent.learn(24)


@pytest.mark.parametrize(
    ("policy", "policy_kwargs", "message"),
    [
        ("MlpLstmPolicy", dict(shared_lstm=True), "shared_lstm and enable_critic_lstm"),
        (
            "MlpLstmPolicy",
            dict(shared_lstm=True, enable_critic_lstm=False, share_features_extractor=False),
            "who shares a memory shares both",
        ),
        ("MlpLstmPolicy", dict(enable_critic_lstm=False), "shared_lstm=True beside it"),
        ("MlpLstmPolicy", dict(lstm_kwargs=dict(dropout=0.5)), "it has no dropout"),
        ("MlpLstmPolicy", dict(d_model=64), "here it is lstm_hidden_size"),
        ("MlpPolicy", dict(lstm_hidden_size=64), "lstm_hidden_size is an argument of MlpLstmPolicy"),
        (ActorCriticPolicy, {}, "policies.ActorCriticPolicy is none of unroll's: write its name"),
    ],
)
def test_what_is_not_to_be_had_is_one_line_that_says_what_to_write(policy, policy_kwargs, message):
    with pytest.raises(HyperparameterError, match=message) as caught:
        RecurrentPPO(policy, "CartPole-v1", policy_kwargs=policy_kwargs)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AssertionError)  # as which Stable-Baselines3 raises it


def test_a_loop_that_hands_back_states_with_one_environment():
    env = make_vec_env("CartPole-v1")
    model = RecurrentPPO("MlpLstmPolicy", env, batch_size=128, n_epochs=1, device="cpu").learn(128)
    assert model.steps_of_sequence == 128
    observation = env.reset()
    states = None
    starts = np.ones((1,), dtype=bool)
    for _ in range(30):
        action, states = model.predict(observation, state=states, episode_start=starts, deterministic=True)
        observation, _, starts, _ = env.step(action)


def test_a_state_that_predict_did_not_return_is_told_of():
    agent = make_ppo(vector(Noise), backbone="lstm", n_layers=1)
    observation = agent.env.reset()
    zeros = (np.zeros((1, 3, 16)), np.zeros((1, 3, 16)))
    with pytest.raises(ValueError, match="not ndarray: it is None at first, and then what predict"):
        agent.predict(observation, zeros)
    _, state = agent.predict(observation)
    with pytest.raises(ValueError, match="episode_start is of 2 environments, the observation of 3"):
        agent.predict(observation, state, np.ones(2, bool))


def test_what_knows_no_sequences_says_what_does():
    agent = make_ppo(vector(Noise))
    with pytest.raises(NotImplementedError, match="evaluate_sequences"):
        agent.policy.evaluate_actions(torch.zeros(3, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("backbone", ["mingru", "lstm", "transformer"])
def test_starts_of_episodes_may_be_numbers_as_in_sb3_contribs_code(backbone):
    agent = make_ppo(vector(Noise), backbone=backbone)
    policy = agent.policy
    observation = torch.from_numpy(agent.env.reset())
    starts = torch.tensor([True, False, False])
    actions = torch.zeros(3, 1, 2)
    with torch.no_grad():
        _, state = policy.get_distribution(observation, policy.initial_state(3))
        results = []
        for given in (starts, starts.float()):
            distribution, _ = policy.get_distribution(observation, state, given)
            one_step = policy(observation, state, given, deterministic=True)[:3]
            values = policy.predict_values(observation, state, given)
            sequences = policy.evaluate_sequences(observation[:, None], actions, state, given[:, None])
            results.append((distribution.distribution.mean, *one_step, values, *sequences))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


# Sizes


@pytest.mark.parametrize(
    ("n_envs", "sizes", "length", "minibatches"),
    [
        (8, dict(n_steps=128), 128, 4),  # as ever
        (3, dict(n_steps=128), 128, 3),
        (1, dict(n_steps=256), 32, 4),
        (1, dict(n_steps=2048), 256, 4),
        (1, dict(n_steps=600), 75, 4),
        (1, dict(n_steps=64), 64, 1),  # shorter ones would be too short
        (1, dict(n_steps=257), 257, 1),  # has no divisor
        (1, dict(n_steps=256, sequence_length=256), 256, 1),
        (1, dict(n_steps=128, batch_size=128), 128, 1),
        (1, dict(n_steps=2048, batch_size=64), 64, 32),
        (4, dict(n_steps=1024, batch_size=128), 128, 32),
        (4, dict(n_steps=32, batch_size=64), 32, 2),
    ],
)
def test_sequences_and_minibatches_of_default_sizes(n_envs, sizes, length, minibatches):
    agent = make_ppo(vector(Noise, n_envs), n_epochs=1, **sizes)
    assert agent.steps_of_sequence == length
    batches = agent.n_steps * n_envs / (length * agent._sequences_per_minibatch)
    assert batches == minibatches
    agent.learn(1)
    assert len(agent._states) == agent.n_steps // length


def test_a_run_says_that_its_sequences_are_shorter(tmp_path, capsys):
    one = [*MAZE, "--n_envs", "1", "--n_steps", "128", "--steps", "128", "--run_dir", str(tmp_path / "run")]
    assert train.main(one) == 0
    assert "note: sequences of 16 steps; --sequence_length 128 lets gradients flow further" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(clip_range_vf=-0.2), "clip_range_vf -0.2: must be positive"),
        (dict(clip_range_vf=0), "clip_range_vf 0: must be positive"),
        (dict(n_steps=1), "n_steps × n_envs is 1, and one advantage cannot be normalised"),
        (dict(n_steps=8, batch_size=1), "batch_size is 1, and one advantage cannot be normalised"),
        (dict(n_steps=64, batch_size=63), "whole sequences of 64 steps, so 64 would do"),
    ],
)
def test_what_stable_baselines3_refuses_is_refused(sizes, message):
    with pytest.raises(HyperparameterError, match=message):
        make_ppo(vector(Noise, 1), **sizes)
    if "batch_size" not in sizes or sizes["batch_size"] == 1:
        with pytest.raises(AssertionError):
            PPO("MlpPolicy", vector(Noise, 1), **{"batch_size": 64} | sizes)


def test_one_step_is_learned_from_where_nothing_is_normalised():
    agent = make_ppo(vector(Noise, 1), n_steps=1, batch_size=1, normalize_advantage=False).learn(4)
    assert np.isfinite(agent.logger.name_to_value["train/loss"])


def test_a_last_minibatch_that_is_smaller_is_told_of_in_steps():
    with pytest.warns(UserWarning, match=r"minibatches of 2: the last has 1, a truncated mini-batch of size 16"):
        make_ppo(vector(Noise, 3), batch_size=32)


@pytest.mark.parametrize("env", [IdentityEnv(4), IdentityEnvMultiDiscrete(4), IdentityEnvMultiBinary(4)])
def test_one_environment_learns_as_fast_as_stable_baselines3_expects(env):
    """As in its test_identity.py, but in the mean of two seeds."""
    vector = DummyVecEnv([lambda: env])
    sizes = dict(gamma=0.4, learning_rate=0.002, n_epochs=4, n_steps=256, device="cpu")
    returns = []
    for seed in (3, 4):
        agent = RecurrentPPO("MlpPolicy", vector, seed=seed, **sizes).learn(1200)
        returns.append(evaluate_policy(agent, vector, n_eval_episodes=20, warn=False)[0])
    assert np.mean(returns) > 90
