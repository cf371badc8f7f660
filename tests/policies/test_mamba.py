"""Mamba against its formulas, and its kernel against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from unroll.policies.backbones.kernels import choose_body
from unroll.policies.backbones.kernels import selective as operators
from unroll.policies.backbones.mamba import Mamba
from unroll.policies.backbones.selective import selective_scan

with_the_kernel = pytest.mark.skipif(choose_body("auto", torch.empty(0)) != "cpu", reason="numba's kernels are missing")
NAMES = ("u", "dt", "a", "b", "c", "h0")


def problem(batch=3, time=7, channels=5, states=4):
    torch.manual_seed(0)
    u, b, c = (torch.randn(batch, time, n, dtype=torch.float64) for n in (channels, states, states))
    dt, a = torch.rand_like(u), -torch.rand(channels, states, dtype=torch.float64)
    return [x.requires_grad_() for x in (u, dt, a, b, c, torch.randn(batch, channels, states, dtype=torch.float64))]


def test_mamba_is_its_formulas():
    torch.manual_seed(0)
    mixer, x = Mamba(8, expansion=1.5, d_state=3, conv=3).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    u, z = mixer.input(x).chunk(2, -1)
    convolved = F.conv1d(F.pad(u.mT, (2, 0)), mixer.conv.weight.flip(0).T[:, None], mixer.conv.bias, groups=12).mT
    u = F.silu(convolved)
    dt, b, c = mixer.select(u).split([1, 3, 3], -1)
    dt, a, h, outputs = F.softplus(mixer.dt(dt)), -mixer.log_a.exp(), torch.zeros(2, 12, 3), []
    for t in range(9):
        h = (dt[:, t, :, None] * a).exp() * h + dt[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
        outputs.append((h * c[:, t, None]).sum(-1) + mixer.skip * u[:, t])
    torch.testing.assert_close(mixer(x)[0], mixer.out(torch.stack(outputs, 1) * F.silu(z)))


def outputs_and_gradients(inputs, reset):
    """y, the last state and the gradients of all inputs through both, for one random direction."""
    outputs, random = selective_scan(*inputs, reset), torch.Generator().manual_seed(0)
    directions = [torch.randn(x.shape, generator=random).to(x) for x in outputs]
    return *outputs, *torch.autograd.grad(outputs, inputs, directions)


def test_the_scan_is_its_definition_with_all_gradients():
    *inputs, h = problem()
    reset = torch.rand(3, 7) < 0.3
    y, last = selective_scan(*inputs, h, reset)
    u, dt, a, b, c = inputs
    for t in range(7):
        h = torch.where(reset[:, t, None, None], 0, h)
        h = (dt[:, t, :, None] * a).exp() * h + (dt * u)[:, t, :, None] * b[:, t, None]
        torch.testing.assert_close(y[:, t], (h * c[:, t, None]).sum(-1))
    torch.testing.assert_close(last, h)
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, reset), problem())


@with_the_kernel
@given(data=st.data())
def test_the_kernel_computes_what_float64_computes_with_all_gradients(data):
    batch, channels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    time = data.draw(st.sampled_from([1, 15, 16, 17, 32, 33]) | st.integers(1, 70))
    exact = problem(batch, time, channels, data.draw(st.sampled_from([1, 4, 16, 17])))
    reset = None if data.draw(st.booleans()) else torch.rand(batch, time) < 0.1
    rounded = [x.detach().float().requires_grad_() for x in exact]
    for name, ours, truth in zip(
        ("y", "last", *NAMES), outputs_and_gradients(rounded, reset), outputs_and_gradients(exact, reset), strict=True
    ):
        error = (ours.double() - truth).abs().max() / truth.abs().max().clamp_min(1)
        assert error < 1e-5, f"{name} is off by {error:.1e}"


@with_the_kernel
def test_the_kernel_reads_tensors_however_they_lie_in_memory():
    inputs = [x.detach().float() for x in problem(4, 19, 24, 16)]
    reset = torch.rand(4, 19) < 0.2
    apart = [torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_() for x in inputs]
    apart[0] = inputs[0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = outputs_and_gradients([x.requires_grad_() for x in inputs], reset)
    for ours, same in zip(outputs_and_gradients(apart, reset.T.contiguous().T), results, strict=True):
        assert torch.equal(ours, same)


@with_the_kernel
@pytest.mark.parametrize("start", [5, 16, 20])
def test_nan_before_a_reset_reaches_nothing_after_it(start):
    *inputs, h0 = (x.detach().float() for x in problem(2, 23, 6, 4))
    inputs[0][:, start - 2] = inputs[1][:, start - 3] = h0[0] = torch.nan
    inputs = [x.requires_grad_() for x in (*inputs, h0)]
    reset = torch.zeros(2, 23, dtype=torch.bool)
    reset[:, start] = True
    y, last = selective_scan(*inputs, reset)
    u, dt, a, b, c, _ = inputs
    alone, also = selective_scan(*(x[:, start:] for x in (u, dt)), a, *(x[:, start:] for x in (b, c)))
    torch.testing.assert_close(y[:, start:], alone)
    torch.testing.assert_close(last, also)
    sequences = (u, dt, b, c)
    gradients = torch.autograd.grad(y[:, start:].cos().sum() + last.sum(), sequences)
    for ours, truth in zip(gradients, torch.autograd.grad(alone.cos().sum() + also.sum(), sequences), strict=True):
        torch.testing.assert_close(ours[:, start:], truth[:, start:])


@with_the_kernel
def test_a_decay_that_is_nearly_one_does_not_drift_and_one_that_is_nearly_zero_is_zero():
    time = 4000
    u, b, c = torch.zeros(1, time, 2), torch.zeros(1, time, 1), torch.ones(1, time, 1)
    a, h0 = torch.tensor([[-1e-3], [-1e4]]), torch.ones(1, 2, 1)
    dt = 0.1 + 0.1 * torch.rand(1, time, 2)
    y, _ = selective_scan(u, dt, a, b, c, h0)
    exact, _ = selective_scan(*(x.double() for x in (u, dt, a, b, c, h0)))
    torch.testing.assert_close(y[..., 0].double(), exact[..., 0], rtol=3e-5, atol=0)
    assert (y[..., 1] == 0).all()


@with_the_kernel
def test_the_operator_keeps_the_rules_of_torch_and_its_memory_is_that_of_every_16th_state():
    u, dt, a, b, c, h0 = (x.detach().float() for x in problem(2, 33, 5, 4))
    inputs = [x.contiguous().requires_grad_() for x in (u, dt, a.mT, b, c, h0.mT)]
    for reset in (None, torch.rand(2, 33) < 0.2):
        torch.library.opcheck(operators.selective_scan, (*inputs, reset))
    assert operators.selective_scan(*inputs, None)[2].shape == (2, 3, 4, 5)


@pytest.mark.parametrize(("span", "slowest", "fastest"), [(0.0, 0.001, 0.1), (100.0, 0.01, 0.1), (4.0, 0.25, 0.25)])
def test_steps_start_so_that_the_slowest_state_forgets_over_the_memory_span(span, slowest, fastest):
    torch.manual_seed(0)
    dt = F.softplus(Mamba(256, memory_span=span).dt.bias)
    assert slowest * 0.999 < dt.min() < slowest * 1.1
    assert fastest * 0.9 < dt.max() < fastest * 1.001


def test_states_start_by_forgetting_at_rates_of_one_to_d_state_and_the_input_passes():
    mixer = Mamba(8, d_state=3)
    torch.testing.assert_close(mixer.log_a.exp(), torch.tensor([1.0, 2.0, 3.0]).expand(16, 3))
    assert (mixer.skip == 1).all()


def test_the_scan_is_made_in_float32_under_autocast():
    inputs = [x.float() for x in problem()]
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = selective_scan(*inputs)
    torch.testing.assert_close(y, selective_scan(*inputs)[0])


@with_the_kernel
def test_half_precision_inputs_get_gradients_of_their_own_type_through_sums_in_float32():
    halves = [x.detach().bfloat16().requires_grad_() for x in problem(2, 40, 6, 16)]
    y, last, *gradients = outputs_and_gradients(halves, None)
    assert y.dtype == last.dtype == torch.float32
    exact = outputs_and_gradients([x.detach().double().requires_grad_() for x in halves], None)
    torch.testing.assert_close(y.double(), exact[0], rtol=1e-4, atol=1e-4)
    for x, ours, truth in zip(halves, gradients, exact[2:], strict=True):
        assert ours.dtype == x.dtype
        assert (ours.double() - truth).abs().max() < 0.01 * truth.abs().max()


def test_a_reset_or_state_of_another_shape_is_an_error_before_a_kernel_sees_it():
    u, a, b = torch.rand(2, 5, 8), -torch.rand(8, 4), torch.rand(2, 5, 4)
    with pytest.raises(ValueError, match="reset"):
        selective_scan(u, u, a, b, b, None, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="the state before"):
        selective_scan(u, u, a, b, b, torch.zeros(2, 7, 4))
