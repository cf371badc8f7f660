"""What makes a step cheap changes nothing that it computes; the benchmark of acting runs."""

import json

import pytest
import torch
from torch import nn

from unroll.policies.backbones.conv import CausalConv
from unroll.policies.backbones.layers import drop, linear, norm


def test_a_layer_as_a_function_computes_what_its_module_computes():
    x = torch.randn(3, 5, 16)
    pairs = [(nn.Linear(16, 8), linear), (nn.Linear(16, 8, bias=False), linear), (nn.LayerNorm(16), norm)]
    for layer, function in pairs:
        torch.testing.assert_close(function(layer, x), layer(x), rtol=0, atol=0)


def test_dropout_drops_while_it_is_training_alone():
    layer, x = nn.Dropout(0.5), torch.ones(1000)
    assert 300 < (drop(layer, x) == 0).sum() < 700
    assert drop(layer.eval(), x) is x


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_the_steps_of_a_convolution_are_its_sequence(kernel_size):
    torch.manual_seed(0)
    conv = CausalConv(6, kernel_size).double()
    x, reset = torch.randn(3, 12, 6, dtype=torch.float64), torch.rand(3, 12) < 0.2
    y, final = conv(x, None, reset)
    state = conv.initial_state(3)
    for t in range(12):
        z, state = conv.step(x[:, t], state, reset[:, t])
        torch.testing.assert_close(z, y[:, t])
    torch.testing.assert_close(state, final)


def test_the_acting_benchmark_compares_every_candidate_with_the_references(tmp_path, capsys):
    from benchmarks import acting

    output, threads = tmp_path / "acting.json", torch.get_num_threads()
    tiny = ["--batches", "1", "2", "--episodes", "2", "--length", "3", "--repeats", "1"]
    acting.main(["--backbones", "mingru", "transformer", "--output", str(output), "--threads", str(threads), *tiny])
    written = json.loads(output.read_text())
    reference = written["policy"][0]
    carried = [row for row in written["policy"] if "re-encoding" not in row["policy"]]
    assert [(row["policy"], row["tokens"]) for row in carried] == [
        (policy, tokens) for tokens in ("fused", "interleaved") for policy in ("mingru", "transformer")
    ]
    for row in carried:
        assert row["re-encoding / this × 2"] == pytest.approx(reference["µs × 2"] / row["µs × 2"])
    rates = {row["policy"]: row["environment steps/s"] for row in written["rows"]}
    assert [row["ratio"] for row in written["rows"]] == pytest.approx([r / rates[acting.OURS] for r in rates.values()])
    assert "| mingru | fused |" in capsys.readouterr().out
