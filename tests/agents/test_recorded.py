"""Updates as a CUDA graph: on a GPU the real one, elsewhere one whose replay computes the recorded update in Python."""

import contextlib
import copy
import logging

import pytest
import torch
from torch import nn

from fake_graphs import record_fixture  # noqa: F401 - a fixture
from toy import toy_episodes
from unroll.agents import DecisionAgent
from unroll.agents.common.recorded import WARM_UP, Recorder
from unroll.agents.decision.recorded import RecordedUpdate

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA GPU")
UPDATES = WARM_UP + 5


def make_agent(device="cpu", **options):
    sizes = dict(d_model=8, n_layers=1)
    agent = DecisionAgent(toy_episodes(10), device=device, batch_size=4, context=5, policy_kwargs=sizes, **options)
    agent._total_timesteps = 100
    return agent


def weights(agent):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in agent.policy.parameters()])


@pytest.fixture
def recorded(record):
    agent = make_agent()
    made = RecordedUpdate(agent)
    record(lambda: made.recorder)
    return made


def test_recorded_updates_are_those_of_the_agent(recorded):
    alone = make_agent()
    for update in range(UPDATES):
        expected = alone.update()
        metrics = recorded()
        assert recorded.agent.num_timesteps == alone.num_timesteps == update + 1
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(metrics[name], value)
    assert recorded.recorder.graph is not None
    assert torch.equal(weights(recorded.agent), weights(alone))


def test_metrics_of_an_update_stay_what_they_were(recorded):
    kept = [recorded()["train/loss"] for _ in range(UPDATES)]
    values = [loss.item() for loss in kept]
    recorded()
    assert [loss.item() for loss in kept] == values
    assert len(set(values)) == UPDATES


def test_what_cannot_be_recorded_goes_on_eagerly_and_says_so_once(recorded, monkeypatch, caplog):
    @contextlib.contextmanager
    def refuse(graph, stream):
        torch.rand(3)
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(logging.getLogger("unroll"), "propagate", True)
    updates = [recorded() for _ in range(UPDATES)]
    assert len(updates) == recorded.agent.num_timesteps == UPDATES
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "not permitted" in lines[0]


def test_a_copy_of_an_agent_learns_itself(recorded):
    for _ in range(UPDATES):
        recorded()
    before = weights(recorded.agent)
    copied = copy.deepcopy(recorded)
    assert copied.recorder.graph is None
    copied()
    assert torch.equal(weights(recorded.agent), before)
    assert not torch.equal(weights(copied.agent), before)
    assert copied.agent.num_timesteps == recorded.agent.num_timesteps + 1


def test_weights_that_were_moved_are_recorded_anew(recorded):
    for _ in range(UPDATES):
        recorded()
    first = recorded.recorder.graph
    recorded.recorder.renew()
    assert recorded.recorder.graph is first
    moved = next(recorded.agent.policy.parameters())
    moved.data = moved.data.clone()  # as torch.nn.utils.vector_to_parameters does
    recorded.recorder.renew()
    assert recorded.recorder.graph is None
    for _ in range(UPDATES):
        recorded()
    assert recorded.recorder.graph is not first


@needs_gpu
@pytest.mark.parametrize("backbone", ["mingru", "gru", "mamba", "transformer"])
def test_a_replayed_update_computes_what_an_eager_one_does(backbone):
    runs = []
    for cuda_graph in (False, True):
        agent = make_agent("cuda", backbone=backbone, cuda_graph=cuda_graph)
        update = agent._recorded or agent.update
        losses = [update()["train/loss"].item() for _ in range(UPDATES)]
        runs.append((losses, weights(agent)))
    assert agent._recorded.recorder.graph is not None
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-6)


@needs_gpu
def test_after_a_recording_that_failed_all_goes_on(caplog):
    weight = torch.zeros(3, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def update():
        optimizer.zero_grad()
        loss = (weight - torch.rand(3, device="cuda")).square().sum()
        loss.backward()
        optimizer.step()
        return {"loss": torch.tensor(loss.item())}  # waits

    stream = torch.cuda.current_stream()
    recorder = Recorder(update, nn.ParameterList([weight]), optimizer)
    losses = [float(recorder()["loss"]) for _ in range(UPDATES)]
    assert not recorder.possible
    assert torch.cuda.current_stream() == stream
    assert len(set(losses)) == UPDATES
    assert torch.rand(3, device="cuda").isfinite().all()


@needs_gpu
def test_a_resumed_run_replays_to_the_same_weights(tmp_path):
    whole = make_agent("cuda")
    whole.learn(2 * UPDATES)
    half = make_agent("cuda")
    half._total_timesteps = 2 * UPDATES
    for _ in range(UPDATES):
        half._recorded()
    half.save(tmp_path / "half")
    resumed = DecisionAgent.load(tmp_path / "half", device="cuda", episodes=toy_episodes(10))
    for _ in range(UPDATES):
        resumed._recorded()
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-6)
