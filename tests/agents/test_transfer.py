"""Weights of another run as the start of PPO: what is taken, what is said, and what is refused."""

import numpy as np
import pytest
import torch

from ppo_runs import NORMALIZED, TINY, agent_of, assert_one_line, exit_code, saved
from toy import toy_episodes
from unroll.agents import DecisionAgent, RecurrentPPO, schemas
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from unroll.agents.ppo.training import PPOTraining
from unroll.commands import train
from unroll.configs import load_config
from unroll.envs import make_vec_env
from unroll.errors import CheckpointError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def decision_checkpoint(backbone="gru", d_model=8, path="decision"):
    sizes = dict(d_model=d_model, n_layers=2)
    agent = DecisionAgent(toy_episodes(), backbone=backbone, context=4, device="cpu", policy_kwargs=sizes)
    agent.learn(2)
    agent.save(path)
    return agent, path


def ppo(backbone="gru", env_id="TMaze10-v0", **policy_kwargs):
    env = make_vec_env(env_id, n_envs=2)
    return RecurrentPPO("MlpPolicy", env, backbone=backbone, n_steps=8, policy_kwargs=policy_kwargs, device="cpu")


def test_the_backbone_of_a_decision_agent_begins_actor_and_critic():
    source, path = decision_checkpoint()
    agent = ppo(d_model=8, n_layers=2)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    said = agent.take_weights(path)

    theirs = source.policy.state_dict()
    taken = 0
    for name, value in agent.policy.state_dict().items():
        if ".backbone." in name:
            other = theirs["backbone." + name.partition(".backbone.")[2]]
            assert torch.equal(value, other), name
            taken += 1
        else:
            assert torch.equal(value, before[name]), name
    assert taken
    assert said.startswith(f"{taken} of {taken} tensors of the backbones")
    agent.learn(16)


def test_no_gate_is_signed_where_none_was_in_what_is_taken():
    """In a policy of PPO a sixteenth of the channels alternates, in a decision agent none."""
    _, path = decision_checkpoint("mingru", d_model=32)
    agent = ppo("mingru", d_model=32, n_layers=2)
    turns = [v for name, v in agent.policy.named_buffers() if name.endswith("turn")]
    assert all((turn == -1).sum() == 2 for turn in turns)
    agent.take_weights(path)
    assert all((turn == 1).all() for turn in turns)

    signed = ppo("mingru", d_model=32, n_layers=2, backbone_options={"signed": True})
    signed.take_weights(path)
    assert all((v == 1).all() for name, v in signed.policy.named_buffers() if name.endswith("turn"))

    wide = ppo("mingru", d_model=32, n_layers=2, backbone_options={"expansion": 2.0})
    wide.take_weights(path)  # not the gates
    assert all((v == -1).sum() == 4 for name, v in wide.policy.named_buffers() if name.endswith("turn"))

    narrow = ppo("mingru", d_model=16, n_layers=2)
    with pytest.raises(CheckpointError, match="nothing of it has the shape"):
        narrow.take_weights(path)


def test_signed_gates_do_not_become_others():
    agent, config = agent_of("--env", "TMaze10-v0", "--backbone.d_model", "32", "--backbone.options", "{signed: true}")
    saved(agent, config)
    other, _ = agent_of("--env", "TMaze10-v0", "--backbone.d_model", "32")
    other.take_weights("checkpoint")
    assert all((v[1] == 2).all() for name, v in other.policy.named_buffers() if name.endswith("turn"))
    plain, _ = agent_of("--env", "TMaze10-v0", "--backbone.d_model", "32", "--backbone.options", "{signed: false}")
    with pytest.raises(CheckpointError, match=r"its gates are signed \(true\), and those that are to learn are not"):
        plain.take_weights("checkpoint")


def test_ppo_of_a_shorter_corridor_goes_on_in_a_longer_one():
    agent, config = agent_of("--env", "TMaze10-v0", *NORMALIZED)
    saved(agent, config)
    other, _ = agent_of("--env", "TMaze20-v0", *NORMALIZED, "--seed", "1")
    said = other.take_weights("checkpoint")

    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name]), name
    theirs, own = agent.get_vec_normalize_env(), other.get_vec_normalize_env()
    assert np.array_equal(theirs.obs_rms.mean, own.obs_rms.mean)
    assert theirs.ret_rms.count == own.ret_rms.count
    assert said.endswith("statistics of observations and rewards are taken")


def test_it_is_said_that_statistics_are_not_taken():
    saved(*agent_of("--env", "TMaze10-v0", *NORMALIZED))
    plain, _ = agent_of("--env", "TMaze10-v0")
    assert plain.take_weights("checkpoint").endswith("are others, and are not taken")


def test_a_layer_more_begins_as_ever():
    saved(*agent_of("--env", "TMaze10-v0"))
    deeper, _ = agent_of("--env", "TMaze10-v0", "--backbone.n_layers", "2")
    n = len(deeper.policy.state_dict())
    said = deeper.take_weights("checkpoint")
    assert f"of {n} tensors of the policy" in said
    assert not said.startswith(f"{n} of")


@pytest.mark.parametrize("other", [dict(backbone="lstm"), dict(d_model=4)])
def test_what_does_not_fit_is_refused(other):
    _, path = decision_checkpoint(**other)
    agent = ppo(d_model=8, n_layers=2)
    before = [value.clone() for value in agent.policy.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"its backbone is lstm|another width") as refused:
        agent.take_weights(path)
    assert "\n" not in str(refused.value)
    assert all(map(torch.equal, before, agent.policy.state_dict().values()))


def test_weights_that_are_not_finite_are_refused_and_nothing_is_changed():
    _, path = decision_checkpoint()
    tensors, state = read_checkpoint(path)
    last = max(name for name in tensors if ".mixer." in name and name.startswith("policy."))
    tensors[last].fill_(float("nan"))
    write_checkpoint(path, tensors, state)
    agent = ppo(d_model=8, n_layers=2)
    before = [value.clone() for value in agent.policy.state_dict().values()]
    with pytest.raises(CheckpointError, match="not finite"):
        agent.take_weights(path)
    assert all(map(torch.equal, before, agent.policy.state_dict().values()))


def test_a_run_begins_with_them_once_and_not_again_when_it_goes_on(capsys):
    short = [*TINY, "--env", "TMaze10-v0", "--steps", "64", "--run_dir", "short"]
    assert train.main(short) == 0
    long = [*TINY, "--env", "TMaze20-v0", "--steps", "64", "--run_dir", "long", "--pretrain.weights", "short"]
    training = PPOTraining(load_config(long, schemas()), print)
    taken, _ = read_checkpoint(latest_checkpoint("short"))
    for name, value in training.agent.policy.state_dict().items():
        assert torch.equal(value, taken[f"policy.{name}"])

    assert train.main(long) == 0
    assert "tensors of the policy begin as those of short" in capsys.readouterr().out
    assert train.main(["--resume", "true", "--run_dir", "long", "--steps", "128"]) == 0
    assert "begin as those of" not in capsys.readouterr().out
    whole = [*long[:-4], "--run_dir", "whole", "--pretrain.weights", "short", "--steps", "128"]
    assert train.main(whole) == 0
    first, _ = read_checkpoint(latest_checkpoint("whole"))
    second, _ = read_checkpoint(latest_checkpoint("long"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("policy."))


def test_a_run_that_is_not_there_is_one_line(capsys):
    code = exit_code(train.main, [*TINY, "--env", "TMaze10-v0", "--pretrain.weights", "nowhere"])
    assert code == 2
    assert_one_line(capsys, "nowhere")
