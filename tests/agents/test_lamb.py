"""LAMB with a minimum trust, against its formulas."""

import pytest
import torch

from toy import make_agent, toy_episodes
from unroll.agents import DecisionAgent
from unroll.agents.common.optim import LAMB, make_optimizer


def test_two_updates_are_the_formulas():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    expected, m, v = weight.detach().clone(), 0, 0
    optimizer = LAMB([weight], lr=0.1, weight_decay=0.01, min_trust=0.25)
    for _ in range(2):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = m / (v.sqrt() + 1e-6) + 0.01 * expected
        trust = max(min(expected.norm(), 10) / step.norm(), 0.25)
        expected = expected - 0.1 * trust * step
        torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(
    ("value", "trust"),
    [(1e-3, 0.25), (0.0, 1.0), (1e3, 10.0 / (0.1 / 0.001**0.5))],
    ids=["at least the minimum", "one for a weight of zeros", "a norm counts as 10 at most"],
)
def test_the_trust_is(value, trust):
    weight = torch.nn.Parameter(torch.full((1,), value, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    LAMB([weight], lr=1.0).step()
    step = 0.1 / (0.001**0.5 + 1e-6)
    assert (value - weight.item()) / step == pytest.approx(max(trust, 0.25), rel=1e-4)


@pytest.mark.parametrize("wrong", [dict(lr=-1.0), dict(betas=(0.9, 1.0)), dict(min_trust=2.0), dict(eps=0.0)])
def test_a_hyperparameter_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(ValueError, match="LAMB"):
        LAMB([torch.zeros(1)], **wrong)


@pytest.mark.parametrize(("name", "kind"), [("lamb", LAMB), ("adamw", torch.optim.AdamW)])
def test_an_optimizer_gets_the_rate_and_the_decay_that_were_asked_for(name, kind):
    optimizer = make_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], 0.5, 0.25)
    assert type(optimizer) is kind
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.25)


def test_an_agent_learns_with_lamb_and_goes_on_bit_for_bit(tmp_path):
    whole = make_agent(optimizer="lamb").learn(6)
    part = make_agent(optimizer="lamb")
    part._total_timesteps = 6
    for _ in range(3):
        part.update()
    part.save(tmp_path / "agent")
    agent = DecisionAgent.load(tmp_path / "agent", device="cpu", episodes=toy_episodes())
    for _ in range(3):
        agent.update()
    assert isinstance(agent.optimizer, LAMB)
    for ours, theirs in zip(agent.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
