"""Gated DeltaNet: the chunks are the delta rule, and a matrix keeps apart what a vector mixes."""

import pytest
import torch

from unroll.errors import BackboneError
from unroll.policies.backbones import make_backbone
from unroll.policies.backbones.deltanet import CHUNK, DeltaNet, delta_scan

DOUBLE = dict(dtype=torch.float64)


def delta_rule(query, key, value, log_keep, write, memory, reset):
    """S[t] = S[t-1]·α (I - β k kᵀ) + β v kᵀ, as it stands in 2412.06464, where S is ours transposed."""
    state = memory.mT
    reads = []
    for t in range(query.shape[2]):
        state = torch.where(reset[:, t, None, None, None], 0, state)
        k, v = key[:, :, t, :, None], value[:, :, t, :, None]
        keep, beta = log_keep[:, :, t, None, None].exp(), write[:, :, t, None, None]
        state = state @ (keep * (torch.eye(k.shape[2], **DOUBLE) - beta * k @ k.mT)) + beta * v @ k.mT
        reads.append(state @ query[:, :, t, :, None])
    return torch.stack(reads, 2)[..., 0], state.mT


def draw(time, batch=2, heads=3, size=4):
    query, key, value = torch.randn(3, batch, heads, time, size, **DOUBLE)
    key = torch.nn.functional.normalize(key, dim=-1)
    write = 2 * torch.rand(batch, heads, time, **DOUBLE)
    return (
        query,
        key,
        value,
        -torch.rand(batch, heads, time, **DOUBLE),
        write,
        torch.randn(batch, heads, size, size, **DOUBLE),
    )


@pytest.mark.parametrize("time", [1, CHUNK, 2 * CHUNK + 5])
def test_the_chunks_are_the_delta_rule(time):
    torch.manual_seed(0)
    inputs = [x.requires_grad_() for x in draw(time)]
    reset = torch.rand(2, time) < 0.1
    got, expected = delta_scan(*inputs, reset), delta_rule(*inputs, reset)
    gradients = [torch.randn_like(x) for x in expected]
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(*(torch.autograd.grad(z, inputs, gradients) for z in (got, expected)), strict=True):
        torch.testing.assert_close(x, y)


def test_a_gate_that_closes_for_a_moment_costs_no_digits():
    """A running sum of logarithms would be of the size of the largest from there on."""
    torch.manual_seed(0)
    inputs = list(draw(CHUNK))
    inputs[3][:, :, 5] = -1e6
    reset = torch.zeros(2, CHUNK, dtype=torch.bool)
    exact, _ = delta_rule(*inputs, reset)
    got, _ = delta_scan(*(x.float() for x in inputs))
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


def test_as_many_pairs_as_a_key_has_channels_are_told_apart_and_the_last_value_counts():
    keys = torch.eye(4, **DOUBLE)
    values = torch.randn(5, 4, **DOUBLE)
    order = torch.tensor([0, 1, 2, 3, 1])  # the second one is written twice
    inputs = [
        x[None, None] for x in (keys[order], keys[order], values, torch.zeros(5, **DOUBLE), torch.ones(5, **DOUBLE))
    ]
    _, memory = delta_scan(*inputs, torch.zeros(1, 1, 4, 4, **DOUBLE))
    torch.testing.assert_close(keys @ memory[0, 0], values[[0, 4, 2, 3]])


def test_the_strength_of_writing_goes_to_2_where_it_is_signed():
    plain, signed = DeltaNet(8), DeltaNet(8, signed=True)
    signed.load_state_dict(plain.state_dict())
    mixed, gates = torch.randn(50, 24), 9 * torch.randn(50, 8)
    torch.testing.assert_close(signed._parts(mixed, gates)[-1], 2 * plain._parts(mixed, gates)[-1])
    assert signed._parts(mixed, gates)[-1].max() > 1.9


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(BackboneError, match="d_model 10 must be divisible by n_heads = 4"):
        make_backbone("deltanet", 10)


def test_weights_of_16_bits_learn_and_step():
    backbone = make_backbone("deltanet", 16, 1).to(torch.bfloat16)
    x = torch.randn(2, 5, 16, dtype=torch.bfloat16)
    y, state = backbone(x)
    y.sum().backward()
    z, _ = backbone.step(x[:, 0], state)
    assert y.dtype == z.dtype == torch.bfloat16
