"""Mamba against its formulas, and the optional kernel of mamba-ssm by a stand-in."""

import sys

import pytest
import torch
import torch.nn.functional as F

from policies.backbones import mamba_kernel
from policies.backbones.mamba import Mamba
from policies.backbones.mamba_kernel import agrees, on_the_linear_scan, with_kernel
from policies.backbones.selective import selective_scan


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


def test_the_scan_step_by_step_is_the_scan_of_whole_sequences_with_all_gradients():
    inputs, reset = problem(), torch.rand(3, 7) < 0.3
    results = []
    for scan in (selective_scan, on_the_linear_scan):
        y, last = scan(*inputs, reset)
        results.append((y, last, *torch.autograd.grad(y.cos().sum() + last.sin().sum(), inputs)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, reset), inputs)


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


def like_mamba_ssm(u, dt, a, b, c, return_last_state):
    """What mamba-ssm documents: sequences [B, D, T], B and C [B, N, T]."""
    assert return_last_state
    y, last = on_the_linear_scan(*(x.mT if x.ndim == 3 else x for x in (u, dt, a, b, c)))
    return y.mT, last.detach()


def test_a_kernel_that_agrees_is_accepted_and_one_that_does_not_is_refused():
    assert agrees(like_mamba_ssm, "cpu")
    assert not agrees(lambda u, dt, *rest, **k: like_mamba_ssm(u, dt * 1.1, *rest, **k), "cpu")


def test_a_gradient_that_the_kernel_lacks_is_an_error_and_not_a_zero():
    *inputs, _ = problem()
    _, last = with_kernel(like_mamba_ssm, *inputs)
    with pytest.raises(RuntimeError, match="no gradient for the state"):
        last.sum().backward()


def test_without_mamba_ssm_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    mamba_kernel.agreeing_kernel.cache_clear()
    assert mamba_kernel.agreeing_kernel() is None
    mamba_kernel.agreeing_kernel.cache_clear()


def test_the_scan_is_made_in_float32_under_autocast():
    inputs = [x.float() for x in problem()]
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = selective_scan(*inputs)
    torch.testing.assert_close(y, selective_scan(*inputs)[0])
