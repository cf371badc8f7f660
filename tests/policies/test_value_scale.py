"""Values are said in units of the returns, whatever these are."""

import pytest
import torch
from torch import nn

from unroll.policies.value_scale import ValueScale


def returns_of(scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * (3 + torch.randn(200, generator=generator))


def test_no_value_changes_where_the_unit_does():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    features = torch.randn(50, 5)
    scale.update(returns_of(1), torch.zeros(200), last)
    for seed, size in enumerate((1e-3, 40.0, 1e5, 0.0, 2.0)):
        before = scale(last(features))
        scale.update(returns_of(size, seed), before[0].expand(200), last)
        torch.testing.assert_close(scale(last(features)), before, rtol=1e-4, atol=1e-6)


def test_the_first_returns_give_the_unit_to_a_network_that_says_nothing_yet():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    weight = last.weight.clone()
    returns = returns_of(1000)
    scale.update(returns, torch.zeros(200), last)
    assert torch.equal(last.weight, weight)
    assert float(scale.square) == pytest.approx(float(returns.square().mean()))
    torch.testing.assert_close(scale(torch.ones(3)), scale.square.sqrt().expand(3))


def test_the_first_update_says_by_how_much_the_values_grow():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    features = torch.randn(50, 5)
    before = scale(last(features))
    larger = scale.update(returns_of(1000), torch.zeros(200), last)
    assert larger > 1000
    torch.testing.assert_close(scale(last(features)), larger * before)
    assert scale.update(returns_of(10), torch.zeros(200), last) == 1


def test_the_unit_is_the_mean_over_all_returns_at_first_and_over_the_last_ones_later():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    seen = [returns_of(size, size) for size in range(1, 10)]
    for returns in seen:
        scale.update(returns, returns, last)
    assert float(scale.square) == pytest.approx(float(torch.cat(seen).square().mean()), rel=1e-4)
    for _ in range(100):
        scale.update(torch.full((10,), 5.0), torch.full((10,), 5.0), last)
    assert float(scale.square) == pytest.approx(25, rel=0.01)


def test_values_that_are_wrong_by_much_keep_the_unit_large():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    for _ in range(100):
        scale.update(torch.zeros(10), torch.full((10,), 7.0), last)
    assert float(scale.square) == pytest.approx(49, rel=0.01)


def test_returns_of_zero_leave_everything_finite():
    scale = ValueScale()
    last = nn.Linear(5, 1)
    for size in (0.0, 0.0, 1.0, 0.0):
        scale.update(torch.full((10,), size), torch.zeros(10), last)
        assert scale.square > 0
        assert torch.isfinite(last.weight).all()


def test_weights_of_before_load_in_the_unit_of_the_rewards():
    policy = nn.ModuleDict({"value_scale": ValueScale(), "last": nn.Linear(5, 1)})
    old = {name: value for name, value in policy.state_dict().items() if "scale" not in name}
    policy["value_scale"].update(returns_of(50), torch.zeros(200), policy["last"])
    policy.load_state_dict(old)
    features = torch.randn(8, 5)
    said = policy["last"](features)
    torch.testing.assert_close(policy["value_scale"](said), said)
    # They are worth something, so the first returns change none of them.
    policy["value_scale"].update(returns_of(50), torch.zeros(200), policy["last"])
    torch.testing.assert_close(policy["value_scale"](policy["last"](features)), said)
