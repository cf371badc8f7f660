"""The LSTM's inserted steps are the recurrence with resets: values, gradients and states, and they forget all."""

import pytest
import torch
from torch import nn

from unroll.policies.backbones.fused_rnn import can_insert, run_inserted, run_packed, run_stepwise


def make(batch, time, share, dtype=torch.float64, kind=nn.LSTM):
    torch.manual_seed(0)
    rnn = kind(5, 7, batch_first=True, dtype=dtype)
    x = torch.randn(batch, time, 5, dtype=dtype, requires_grad=True)
    state = tuple(torch.randn(batch, 7, dtype=dtype, requires_grad=True) for _ in range(2 if kind is nn.LSTM else 1))
    return rnn, x, state, torch.rand(batch, time) < share


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 9), (4, 30)])
@pytest.mark.parametrize(("way", "kind"), [(run_inserted, nn.LSTM), (run_stepwise, nn.LSTM), (run_stepwise, nn.GRU)])
def test_all_ways_give_what_packed_episodes_give(way, kind, batch, time, share):
    results = []
    for run in (way, run_packed):
        rnn, x, state, reset = make(batch, time, share, kind=kind)
        y, after = run(rnn, x, state, reset)
        (y.sin().sum() + sum(part.cos().sum() for part in after)).backward()
        gradients = [part.grad for part in (x, *state, *rnn.parameters())]
        results.append([y, *after, *gradients])
    for other, packed in zip(*results, strict=True):
        torch.testing.assert_close(other, packed, rtol=1e-10, atol=1e-10)


def test_a_step_that_empties_the_memory_leaves_exactly_nothing():
    lstm, x, state, reset = make(2, 8, 0.0, torch.float32)
    reset[:, 5] = True
    y, _ = run_inserted(lstm, x, state, reset)
    y[:, 5:].sum().backward()
    assert not x.grad[:, :5].any()
    assert not state[0].grad.any()
    assert x.grad[:, 5:].all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_to_packed_episodes_unless_the_first_step_forgets_it(broken):
    _, x, state, reset = make(3, 6, 0.0)
    assert can_insert(x, state, reset)
    with torch.no_grad():
        state[1][2, 0] = broken
    assert not can_insert(x, state, reset)
    reset[2, 0] = True
    assert can_insert(x, state, reset)
    with torch.no_grad():
        x[0, 0, 0] = broken
    assert not can_insert(x, state, reset)
