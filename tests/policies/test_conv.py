"""The short causal convolution: the kernel on the CPU is the PyTorch code, and neither sees another episode."""

import pytest
import torch

from recurrences import needs_numba
from unroll.policies.backbones import conv
from unroll.policies.backbones.conv import CausalConv

SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (3, 2, 5, 4), (2, 9, 17, 4), (3, 40, 64, 2), (2, 7, 4, 1)]


def computed(layer, x, before, reset, body, monkeypatch):
    """y, what comes before the next sequence, and the gradients of everything."""
    leaves = [a.clone().requires_grad_() for a in (x, before)]
    layer.zero_grad()
    with monkeypatch.context() as patch:
        if body == "reference":
            patch.setattr(conv, "choose_body", lambda backend, x: "reference")
        y, last = layer(*leaves, reset)
    (y.float().sin().sum() + last.float().cos().sum()).backward()
    return [y.detach(), last.detach(), *(a.grad for a in leaves), layer.weight.grad.clone(), layer.bias.grad.clone()]


@needs_numba
@pytest.mark.parametrize("resets", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(("batch", "time", "size", "kernel"), SHAPES)
def test_the_kernel_is_the_pytorch_code(batch, time, size, kernel, resets, monkeypatch):
    torch.manual_seed(0)
    layer = CausalConv(size, kernel)
    x, before = torch.randn(batch, time, size), torch.randn(batch, kernel - 1, size)
    reset = None if resets is None else torch.rand(batch, time) < resets
    ours, theirs = (computed(layer, x, before, reset, body, monkeypatch) for body in ("cpu", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_numba
def test_the_kernel_takes_16_bits_and_any_order_in_memory(monkeypatch):
    torch.manual_seed(0)
    layer = CausalConv(8, 4)
    x = torch.randn(8, 12, 2, dtype=torch.bfloat16).permute(2, 1, 0)
    before = torch.randn(8, 3, 2, dtype=torch.bfloat16).permute(2, 1, 0)
    reset = (torch.rand(12, 2) < 0.2).T
    ours, theirs = (computed(layer, x, before, reset, body, monkeypatch) for body in ("cpu", "reference"))
    assert [a.dtype for a in ours] == [a.dtype for a in theirs]
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=6e-2)


@pytest.mark.parametrize("body", [pytest.param("cpu", marks=needs_numba), "reference"])
def test_nothing_of_another_episode_is_seen_not_even_nan(body, monkeypatch):
    torch.manual_seed(0)
    layer = CausalConv(5, 4)
    x, before = torch.randn(2, 9, 5), torch.full((2, 3, 5), torch.nan)
    x[:, :4] = torch.inf
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, 4] = True
    y, last = computed(layer, x, before, reset, body, monkeypatch)[:2]
    alone = computed(layer, x[:, 4:], torch.zeros(2, 3, 5), None, body, monkeypatch)
    torch.testing.assert_close(y[:, 4:], alone[0])
    torch.testing.assert_close(last, alone[1])


@needs_numba
def test_the_operator_keeps_its_contract():
    """What torch.compile relies on: the shapes of fake tensors, and gradients that are registered."""
    torch.manual_seed(0)
    layer = CausalConv(6, 3)
    conv.choose_body("auto", layer.weight)
    arguments = (torch.randn(2, 5, 6), torch.randn(2, 2, 6), layer.weight.detach(), layer.bias.detach(), None)
    for argument in arguments[:4]:
        argument.requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(conv.operators.causal_conv, arguments, test_utils=checks)


@pytest.mark.parametrize(
    ("x", "state", "reset"),
    [((2, 4, 5), (2, 2, 6), (2, 4)), ((2, 4, 6), (1, 2, 6), (2, 4)), ((2, 4, 6), (2, 2, 6), (2, 3))],
)
def test_a_wrong_shape_is_an_error_before_a_kernel_reads_beyond_it(x, state, reset):
    with pytest.raises((ValueError, RuntimeError)):
        CausalConv(6, 3)(torch.zeros(x), torch.zeros(state), torch.zeros(reset, dtype=torch.bool))
