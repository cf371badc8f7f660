"""The linear recurrence against its definition, and against the log-space form of the minGRU paper."""

import pytest
import torch
import torch.nn.functional as F

from policies.backbones.mingru import MinGRU, positive, remember_bias
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


def test_half_precision_inputs_are_accumulated_in_float32():
    a, b = torch.full((1, 2000, 1), 0.999, dtype=torch.bfloat16), torch.ones(1, 2000, 1, dtype=torch.bfloat16)
    h = linear_scan(a, b)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, linear_scan(a.double(), b.double()).float(), rtol=1e-4, atol=0)


def test_an_unknown_backend_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match="choose one of auto, reference"):
        linear_scan(torch.rand(1, 1, 1), torch.rand(1, 1, 1), backend="gpu")


def test_mingru_equals_the_log_space_form_of_the_paper():
    """Heinsen's scan (2311.06281): log h[t] = a*[t] + logcumsumexp(log b - a*), a* the sum of the log decays."""
    torch.manual_seed(0)
    mixer, x = MinGRU(8).double(), torch.randn(2, 30, 8, dtype=torch.float64)
    gate, candidate = mixer.gate_and_candidate(x).chunk(2, -1)
    log_candidate = torch.where(candidate >= 0, (F.relu(candidate) + 0.5).log(), -F.softplus(-candidate))
    decay = (-F.softplus(gate)).cumsum(1)
    log_h = decay + torch.logcumsumexp(-F.softplus(-gate) + log_candidate - decay, 1)
    torch.testing.assert_close(mixer(x)[0], mixer.out(log_h.exp()))


def test_the_candidate_is_positive_continuous_and_has_a_gradient_at_zero():
    x = torch.tensor([-50.0, -1e-6, 0.0, 1e-6, 3.0], requires_grad=True)
    torch.testing.assert_close(positive(x), torch.tensor([0.0, 0.5, 0.5, 0.5, 3.5]), atol=1e-5, rtol=0)
    positive(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[1] > 0.2
    assert x.grad[3] > 0.9


def test_gates_start_by_remembering_over_two_steps_to_the_whole_span():
    retention = torch.sigmoid(remember_bias(64, 100.0))
    torch.testing.assert_close(1 / (1 - retention[[0, -1]]), torch.tensor([2.0, 100.0]), rtol=1e-3, atol=0)
