"""The layers that are ours for their speed on a CPU compute what PyTorch's compute."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from unroll.policies.backbones import layers as linear
from unroll.policies.backbones.layers import Dropout, Linear


def results(layer, x, dy):
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y, x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 160), (160, 96)])
@pytest.mark.parametrize("dy", ["dense", "expanded", "transposed"])
def test_a_linear_map_and_its_gradients_are_those_of_pytorch(inputs, outputs, bias, dy, monkeypatch):
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(16, 20, inputs)
    assert x.numel() * outputs >= linear.WORTH_IT
    gradients = {
        "dense": torch.randn(16, 20, outputs),
        "expanded": torch.ones(()).expand(16, 20, outputs),
        "transposed": torch.randn(20, 16, outputs).transpose(0, 1),
    }
    used = []
    product = linear.product
    monkeypatch.setattr(linear, "product", lambda *arguments: used.append(1) or product(*arguments))
    for mine, its in zip(results(ours, x, gradients[dy]), results(theirs, x, gradients[dy]), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)
    assert len(used) == (0 if linear._product is None else 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_linear_map_of_another_type_or_under_autocast_is_pytorchs(dtype):
    ours, theirs = Linear(128, 512).to(dtype), nn.Linear(128, 512).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(64, 20, 128, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.float()(x.float()), theirs.float()(x.float()))


def test_dropout_keeps_one_minus_p_and_the_mean_and_its_gradient_is_what_it_kept():
    torch.manual_seed(0)
    x = torch.ones(1000, 999, requires_grad=True)
    y = Dropout(0.3)(x)
    assert (y != 0).float().mean().item() == pytest.approx(0.7, abs=2e-3)
    assert y.mean().item() == pytest.approx(1, abs=3e-3)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_neighbours_are_dropped_independently_of_each_other():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).double() - 0.5
    for distance in (1, 2, 3, 4):
        assert (kept[distance:] * kept[:-distance]).mean().abs() < 2e-3  # 5 standard deviations


def test_dropout_is_drawn_anew_unless_the_seed_is_the_same():
    x, dropout = torch.ones(100), Dropout(0.5)
    torch.manual_seed(0)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training", "expected"), [(0.0, True, 1), (1.0, True, 0), (0.5, False, 1)])
def test_dropout_of_nothing_or_all_or_while_acting(p, training, expected):
    assert (Dropout(p).train(training)(torch.ones(9)) == expected).all()


def test_torch_func_differentiates_a_large_product_too():
    layer, x = Linear(256, 256), torch.randn(80, 256)
    assert x.numel() * layer.out_features >= linear.WORTH_IT
    per_sample = torch.func.vmap(torch.func.grad(lambda row: layer(row.expand(80, -1)).sum()))(x)
    torch.testing.assert_close(per_sample, 80 * layer.weight.sum(0).expand(80, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], layer(x) - layer.bias, rtol=1e-4, atol=1e-4)


def test_a_large_product_has_forward_derivatives():
    layer, x = Linear(256, 256), torch.randn(80, 256)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(tangent, layer(x) - layer.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(96, 160), (160, 96)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_second_derivatives_of_a_large_product_are_pytorchs(inputs, outputs, transposed):
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs), nn.Linear(inputs, outputs)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(20, 16, inputs)
    x = (x.transpose(0, 1) if transposed else x).requires_grad_()
    assert x.numel() * outputs >= linear.WORTH_IT
    second = []
    for layer in (ours, theirs):
        arguments = [x, *layer.parameters()]
        first = torch.autograd.grad(layer(x).tanh().mean(), arguments, create_graph=True)
        second.append(torch.autograd.grad(sum(part.square().sum() for part in first), arguments))
    for mine, its in zip(*second, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-7)


def test_a_large_product_of_one_row_is_pytorchs():
    layer, x = Linear(2048, 2048), torch.randn(2048, requires_grad=True)
    assert x.numel() * layer.out_features >= linear.WORTH_IT
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0), rtol=1e-4, atol=1e-4)
