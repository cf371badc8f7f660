"""SHA-RNN as published: its formulas, its size, and the traps of ports."""

import pytest
import torch
from stable_baselines3.common.utils import polyak_update
from torch import nn

from unroll.policies.backbones import make_backbone
from unroll.policies.backbones.sharnn import Boom, GatedAttention, ValueGate


def size(attention, collapsed=False):
    """Parameters of the published model on enwik8: width 1024, 4 layers, an embedding of 205 tokens that is tied."""
    with torch.device("meta"):
        backbone = make_backbone("sharnn", 1024, 4, attention=attention)
        backbone = backbone.collapsed() if collapsed else backbone
    return (sum(p.numel() for p in backbone.parameters()) + 205 * 1024) / 1e6


def test_the_published_size_has_the_published_number_of_parameters():
    """To 0.1 %: the published code also holds some vectors that it never uses."""
    sizes = [size("all"), size("all", collapsed=True), size("one"), size("one", collapsed=True), size("none")]
    assert sizes == pytest.approx([63.3, 54.9, 53.8, 51.7, 50.6], rel=1e-3)


def test_a_collapsed_copy_is_the_same_function_and_leaves_the_original_alone():
    torch.manual_seed(0)
    backbone, x = make_backbone("sharnn", 8, 3, attention="all"), torch.randn(2, 6, 8)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)
    names = list(backbone.state_dict())
    torch.testing.assert_close(backbone.collapsed()(x)[0], backbone(x)[0])
    assert list(backbone.state_dict()) == names


def attending(n_layers, **options):
    return [layer.attention is not None for layer in make_backbone("sharnn", 8, n_layers, **options).layers]


def test_the_layer_before_the_last_attends_unless_all_or_none_shall():
    assert attending(4) == [False, False, True, False]
    assert attending(2) == [True, False]
    assert attending(1) == [True]
    assert attending(3, attention="all") == [True] * 3
    assert attending(3, attention="none") == [False] * 3


def test_the_attention_is_the_published_formula():
    torch.manual_seed(0)
    attention = GatedAttention(8, 4, 0.0).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    memory, h = attention.memory_norm(x), attention.skip_norm(x)
    query = torch.sigmoid(attention.query_gate) * attention.query_norm(attention.query(h))
    key, value = torch.sigmoid(attention.key_gate) * memory, attention.value_gate() * memory
    scores = query @ key.mT / 8**0.5
    t = torch.arange(10)
    band = (t <= t[:, None]) & (t > t[:, None] - 4)
    weights = scores.masked_fill(~band, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention(x, None, None)[0], h + weights @ value)


def test_its_lstm_remembers_what_its_attention_no_longer_sees():
    torch.manual_seed(0)
    backbone, x = make_backbone("sharnn", 16, 2, window=5).double(), torch.randn(2, 30, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0, 0] += 5
    difference = (backbone(x)[0] - backbone(changed)[0]).abs().amax((0, 2))
    assert (difference > 1e-7).all()


def test_a_layer_replaces_its_input_and_skips_from_the_norms():
    """No skip around the LSTM: the layer's input reaches its output through the LSTM alone."""
    torch.manual_seed(0)
    layer = make_backbone("sharnn", 8, 1, attention="none").layers[0].double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    h = layer.lstm(layer.first_norm(x))[0]
    expected = layer.skip_norm(h) + layer.boom(layer.boom_norm(h))
    torch.testing.assert_close(layer(x, None, None)[0], expected)


def test_boom_sums_the_chunks_of_its_hidden_channels():
    boom, x = Boom(4, 3, 0.0), torch.randn(2, 5, 4)
    hidden = boom.linear(x)
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    torch.testing.assert_close(boom(x), hidden[..., :4] + hidden[..., 4:8] + hidden[..., 8:])


def test_the_initialiser_leaves_the_norms_alone_and_the_gates_half_open():
    backbone = make_backbone("sharnn", 64, 3, attention="all")
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.1 / 8, rel=0.1)
    assert (backbone.layers[0].attention.query_gate == 0).all()


def test_the_value_gate_follows_its_weights_however_they_change():
    """A running average writes to the data of a weight, which tells nobody."""
    gate, target = ValueGate(8).eval(), ValueGate(8)
    nn.init.normal_(target.vector)
    for change in (
        lambda: nn.init.normal_(gate.vector),
        lambda: gate.load_state_dict({name: torch.randn_like(value) for name, value in gate.state_dict().items()}),
        lambda: polyak_update(target.parameters(), gate.parameters(), 0.5),
        lambda: gate.double(),
    ):
        with torch.inference_mode():
            gate()
        change()
        with torch.inference_mode():
            candidate, open_gate = (gate.expand.weight @ gate.vector.sigmoid() + gate.expand.bias).chunk(2)
            torch.testing.assert_close(gate(), candidate.tanh() * open_gate.sigmoid())


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    backbone, x = make_backbone("sharnn", 8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(backbone(x)[0], backbone(x)[0])
    backbone.eval()
    assert torch.equal(backbone(x)[0], backbone(x)[0])


def test_a_step_in_training_drops_what_a_sequence_drops():
    backbone, x = make_backbone("sharnn", 8, 2, dropout=0.5), torch.randn(64, 8)
    state = backbone.initial_state(64)
    torch.manual_seed(0)
    y, _ = backbone(x[:, None], state)
    torch.manual_seed(0)
    z, _ = backbone.step(x, state)
    torch.testing.assert_close(z, y[:, 0])
