"""Minibatches of PPO as a CUDA graph: on a GPU the real one, elsewhere one whose replay computes them in Python."""

import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule

from fake_graphs import record_fixture  # noqa: F401 - a fixture
from memory_tasks import Noise, make_ppo, vector
from unroll.agents.common.distributed import World
from unroll.agents.ppo import agent as ppo
from unroll.agents.ppo.checkpoint import read_ppo, restore_ppo, save_ppo
from unroll.agents.ppo.gradients import actor_parameters
from unroll.agents.ppo.recorded import can_be_recorded
from unroll.envs.tensor_tasks import make_tensor_env
from unroll.errors import TrainingError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA GPU")
STEPS = 2 * 12 * 4  # of two rollouts


def make_agent(**options):
    """Make an agent whose rollout of 24 sequences is cut into minibatches of 5, the last one of 4."""
    sizes = dict(n_steps=12, sequence_length=2, batch_size=10, n_epochs=2)
    return make_ppo(vector(lambda: Noise("box", "box"), 4), **(sizes | options))


@pytest.fixture
def recorded(record, monkeypatch):
    """Make agents that record although they are on a CPU."""

    def made(**options):
        agent = make_agent(**options)
        record(lambda: agent._recorded.recorder)
        return agent

    monkeypatch.setattr(ppo, "can_be_recorded", lambda agent, sequences: agent.cuda_graph)
    return made


def weights(agent):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in agent.policy.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {},
        # not to a range of 0, where rounding says what is clipped
        dict(learning_rate=LinearSchedule(1e-2, 0, 1), clip_range=LinearSchedule(0.3, 0.1, 1), clip_range_vf=0.2),
        dict(recompute_states=True, ent_coef=0.01),
        dict(batch_size=48),
    ],
    ids=["plain", "schedules", "recomputed states", "one minibatch"],
)
@pytest.mark.filterwarnings("ignore:the rollout's")
def test_recorded_minibatches_are_those_of_the_agent(recorded, options):
    plain = recorded(cuda_graph=False, **options).learn(2 * STEPS)
    agent = recorded(**options).learn(2 * STEPS)
    assert agent._recorded.recorder.graph is not None
    torch.testing.assert_close(weights(agent), weights(plain), rtol=1e-4, atol=1e-6)
    logged = agent.logger.name_to_value
    for name, value in plain.logger.name_to_value.items():
        if name.startswith("train/"):
            assert logged[name] == pytest.approx(value, rel=1e-2, abs=1e-6), name
    rates = [group["lr"] for group in agent.policy.optimizer.param_groups]
    assert all(isinstance(rate, float) for rate in rates)  # as checkpoints have it


@pytest.mark.filterwarnings("ignore:the rollout's")
def test_a_minibatch_that_is_not_finite_moves_no_weight_and_is_told(recorded):
    agent = recorded(batch_size=12)  # all minibatches are of one size, so the graph alone sees them
    agent.learn(STEPS)
    before = [parameter.clone() for parameter in actor_parameters(agent.policy)]
    agent.ent_coef = float("nan")
    with pytest.raises(TrainingError, match="train/loss became nan"):
        agent.learn(STEPS // 2, reset_num_timesteps=False)
    assert all(map(torch.equal, actor_parameters(agent.policy), before))


@pytest.mark.filterwarnings("ignore:the rollout's")
def test_after_a_checkpoint_was_read_other_moments_are_recorded(recorded, tmp_path):
    agent = recorded()
    agent.learn(STEPS)
    save_ppo(agent, tmp_path / "half", {})
    first = agent._recorded.recorder.graph
    agent.learn(STEPS, reset_num_timesteps=False)  # what is done here is undone
    assert agent._recorded.recorder.graph is first
    restore_ppo(agent, tmp_path / "half", *read_ppo(tmp_path / "half"))
    agent.learn(STEPS, reset_num_timesteps=False)
    assert agent._recorded.recorder.graph is not first
    assert torch.isfinite(weights(agent)).all()


@pytest.mark.parametrize("changed", ["a new head", "new weights"])
def test_weights_of_ones_own_are_learned_and_clipped(recorded, changed):
    results = []
    for cuda_graph in (False, True):
        agent = recorded(cuda_graph=cuda_graph, batch_size=12, max_grad_norm=0.01)
        torch.manual_seed(7)
        policy = agent.policy
        if changed == "a new head":
            policy.action_net = torch.nn.Linear(policy.action_net.in_features, policy.action_net.out_features)
        else:
            policy.load_state_dict({name: value.clone() for name, value in policy.state_dict().items()}, assign=True)
        policy.optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5, fused=True)
        torch.manual_seed(0)
        agent.learn(STEPS)
        results.append((weights(agent), agent.logger.name_to_value["train/grad_norm"]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-2)


def test_where_a_graph_cannot_stand_for_every_minibatch_none_is_recorded(monkeypatch):
    class Sequences:
        learned_from = None

    agent = make_agent(batch_size=12)
    assert not can_be_recorded(agent, Sequences)  # on a CPU
    agent.device = torch.device("cuda")
    assert can_be_recorded(agent, Sequences)
    for name, value in {"cuda_graph": False, "target_kl": 0.1, "anchor": object(), "use_sde": True}.items():
        before = getattr(agent, name)
        setattr(agent, name, value)
        assert not can_be_recorded(agent, Sequences)
        setattr(agent, name, before)
    Sequences.learned_from = torch.ones(3, 2, dtype=torch.bool)
    assert not can_be_recorded(agent, Sequences)
    Sequences.learned_from = None
    monkeypatch.setattr(World, "size", 2)
    assert not can_be_recorded(agent, Sequences)
    monkeypatch.setattr(World, "size", 1)
    agent.policy.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.1)
    assert not can_be_recorded(agent, Sequences)


@needs_gpu
@pytest.mark.parametrize("backbone", ["mingru", "gru", "lstm", "sharnn", "transformer", "mamba", "deltanet"])
def test_replayed_minibatches_compute_what_eager_ones_do(backbone):
    runs = []
    for cuda_graph in (False, True):
        env = make_tensor_env("CartPoleNoVel-v1", 8, "cuda")
        options = dict(n_steps=16, n_epochs=4, cuda_graph=cuda_graph, backbone=backbone, device="cuda")
        agent = make_ppo(env, **options).learn(3 * 8 * 16)
        runs.append((weights(agent), agent.logger.name_to_value["train/first_ratio_error"]))
    assert agent._recorded.recorder.graph is not None
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-3, atol=1e-5)
    assert runs[1][1] < 1e-5
