"""The Transformer against PyTorch's own layer, and the reach of its window."""

import pytest
import torch
from torch import nn

from unroll.policies.backbones import make_backbone
from unroll.policies.backbones.attention import WindowedAttention


def test_without_positions_it_is_the_stack_of_the_decision_transformer():
    """GPT-2's blocks without its position embedding: pre-norm, ReLU, one head; PyTorch's layer is the oracle."""
    torch.manual_seed(0)
    ours = make_backbone("transformer", 16, 3, n_heads=1, window=20, positions="none", activation="relu").eval()
    layer = nn.TransformerEncoderLayer(16, 1, 64, 0.0, "relu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 3, nn.LayerNorm(16), enable_nested_tensor=False).eval()
    for block, peer in zip(ours.blocks, theirs.layers, strict=True):
        peer.self_attn.in_proj_weight.data, peer.self_attn.in_proj_bias.data = block.mixer.query_key_value.parameters()
        peer.self_attn.out_proj, peer.norm1, peer.norm2 = block.mixer.out, block.mixer_norm, block.mlp_norm
        peer.linear1, peer.linear2 = block.mlp[0], block.mlp[2]
    x = torch.randn(2, 20, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(20)
    torch.testing.assert_close(ours(x)[0], theirs(x, mask=mask, is_causal=True))


def test_a_score_is_that_of_a_query_turned_by_the_distance():
    """RoPE: channels (c, c + C/2) are a complex number, and each step turns it by 10000^(-2c/C)."""
    torch.manual_seed(0)
    attention = WindowedAttention(1, 8, 20)
    query, key, value = torch.randn(3, 2, 12, 1, 8, dtype=torch.float64)
    q, k = (torch.complex(x[:, :, 0, :4], x[:, :, 0, 4:]) for x in (query, key))
    distance = torch.arange(12.0)[:, None] - torch.arange(12.0)
    turned = torch.exp(1j * distance[..., None] * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4))
    scores = torch.einsum("btc,tsc,bsc->bts", q, turned, k.conj()).real / 8**0.5
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention(query, key, value, None, None)[0][:, :, 0], weights @ value[:, :, 0])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 5, 13])
def test_the_span_of_attention_does_not_depend_on_how_a_sequence_is_cut(shared, piece):
    window, time = 4, 13
    attention = WindowedAttention(1, 6, window, rotary=not shared)
    x = torch.randn(1, time, 1, 6, dtype=torch.float64, requires_grad=True)
    cache, outputs = None, []
    for part in x.split(piece, 1):
        y, cache = attention(part, part, None if shared else part, cache, None)
        outputs.append(y)
    y = torch.cat(outputs, 1)
    for t in range(time):
        reached = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)[0].abs().sum((0, 2, 3)).nonzero().squeeze(1)
        assert reached.tolist() == list(range(max(0, t - window + 1), t + 1))


def test_dropout_of_the_attention_is_for_training_alone():
    torch.manual_seed(0)
    backbone, x = make_backbone("transformer", 16, 1, attention_dropout=0.5), torch.randn(1, 8, 16)
    assert not torch.equal(backbone(x)[0], backbone(x)[0])
    backbone.eval()
    assert torch.equal(backbone(x)[0], backbone(x)[0])
