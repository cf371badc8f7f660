"""The linear recurrence against its definition."""

import pytest
import torch

from policies.backbones.scan import linear_scan


def loop(a, b, h0, reset):
    h, states = h0, []
    for t in range(a.shape[1]):
        h = torch.where(reset[:, t].reshape(-1, *[1] * (a.ndim - 2)), torch.zeros_like(h), h)
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 4, 3, 6)])
def test_the_scan_is_the_recurrence(shape):
    a, b, h0 = torch.rand(shape), torch.randn(shape), torch.randn(shape[:1] + shape[2:])
    reset = torch.rand(shape[:2]) < 0.3
    torch.testing.assert_close(linear_scan(a, b, h0, reset), loop(a, b, h0, reset))
    never = torch.zeros_like(reset)
    torch.testing.assert_close(linear_scan(a, b), loop(a, b, torch.zeros_like(h0), never))


def test_the_gradients_of_the_scan_are_right_also_at_a_zero_initial_state():
    a, b = torch.rand(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    h0, reset = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    reset[0, 2] = True
    inputs = [x.requires_grad_() for x in (a, b, h0)]
    assert torch.autograd.gradcheck(lambda a, b, h0: linear_scan(a, b, h0, reset), inputs)


def test_nothing_is_carried_over_a_reset_not_even_nan():
    a, b = torch.rand(2, 5, 3), torch.randn(2, 5, 3)
    b[:, 1] = torch.nan
    reset = torch.tensor([[False, False, False, True, False]] * 2)
    torch.testing.assert_close(linear_scan(a, b, None, reset)[:, 3:], linear_scan(a[:, 3:], b[:, 3:]))


def test_half_precision_inputs_are_accumulated_in_float32():
    a, b = torch.full((1, 2000, 1), 0.999, dtype=torch.bfloat16), torch.ones(1, 2000, 1, dtype=torch.bfloat16)
    h = linear_scan(a, b)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, linear_scan(a.double(), b.double()).float(), rtol=1e-4, atol=0)


def test_an_unknown_backend_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match="choose one of auto, reference, cpu, cuda"):
        linear_scan(torch.rand(1, 1, 1), torch.rand(1, 1, 1), backend="gpu")
