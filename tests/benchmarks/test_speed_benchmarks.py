"""The benchmarks of speed: the peers compute what they say, memory is measured, and every command runs to its table."""

import importlib
import json
import math

import pytest
import torch
from torch import nn

from benchmarks import kernel_bandwidth, kernels, scaling
from benchmarks.layers import SCANS, CellLoop, Gated, forward_backward, log_space_mingru, log_space_minlstm
from benchmarks.memory import Point, peak_memory

TINY = {
    "kernels": ["--threads", "1", "--shapes", "2,3,4", "--errors_length", "40", "--scan_shape", "2,8,16"],
    "scaling": ["--tokens", "32", "--lengths", "8,16,32", "--d_model", "8", "--repeats", "1"],
}
TINY["kernels"] += ["--lengths", "4,8", "--batch", "2", "--repeats", "1", "--device", "cpu"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "BURST", 0.0)
    monkeypatch.setattr(kernel_bandwidth, "CALLS", 1)

    def run(benchmark, *arguments):
        main = importlib.import_module(f"benchmarks.{benchmark}").main
        return main([*TINY[benchmark], "--output", str(tmp_path / "out"), *arguments])

    return run


@pytest.mark.parametrize(("name", "log_space"), [("minGRU", log_space_mingru), ("minLSTM", log_space_minlstm)])
def test_the_log_space_form_is_the_recurrence_in_float64(name, log_space):
    torch.manual_seed(0)
    parts, scan = SCANS[name]
    projected, h0 = torch.randn(2, 30, parts * 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64) + 0.1
    inputs = projected.requires_grad_(), h0.requires_grad_()
    grad = torch.randn(2, 30, 5, dtype=torch.float64)
    one, other = log_space(*inputs), scan(*inputs, None, backend="reference")[0]
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.autograd.grad(one, inputs, grad), torch.autograd.grad(other, inputs, grad))


@pytest.mark.parametrize(("cell", "fused"), [(nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM)])
def test_the_loop_over_cells_is_the_fused_layer(cell, fused):
    torch.manual_seed(0)
    loop, layer = CellLoop(cell, 6), fused(6, 6, batch_first=True)
    loop.cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(loop(x), layer(x)[0])


def test_a_timed_call_computes_the_gradients_of_the_input_and_of_the_matrices():
    x, reset = torch.randn(2, 5, 4, requires_grad=True), torch.rand(2, 5) < 0.5
    layer = Gated("minGRU", 4, reset, "reference")
    grad = torch.randn(2, 5, 4)
    found = forward_backward(layer, x, grad)()
    loss = (SCANS["minGRU"][1](layer.project(x), None, reset, backend="reference")[0] * grad).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, [x, layer.project.weight]))
    assert not layer.project.bias.requires_grad


def test_every_table_of_the_kernels_is_printed_and_written(command, tmp_path, capsys):
    assert command("kernels") == 0
    printed = capsys.readouterr().out
    assert printed.count("torch 2.") == len(kernels.TABLES)
    for name, (title, _) in kernels.TABLES.items():
        written = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert written["title"].startswith(title)
        numbers = [value for row in written["rows"] for value in row.values() if isinstance(value, float)]
        assert numbers
        assert all(math.isfinite(value) and value >= 0 for value in numbers)


def test_the_errors_are_those_of_float32_and_of_bfloat16(command, tmp_path):
    assert command("kernels", "--tables", "errors") == 0
    rows = json.loads((tmp_path / "out" / "errors.json").read_text())["rows"]
    assert {(row["kernel"], row["inputs"]) for row in rows} >= {(name, "bfloat16") for name in SCANS}
    for row in rows:
        bound = 1e-2 if row["inputs"] == "bfloat16" else 1e-3 if row["form"] == "log space" else 1e-5
        assert max(row["h"], row["d projected"], row["d h0"]) < bound, row
        assert row["h"] > 0


def test_the_share_of_a_copy_follows_from_the_bytes(command, tmp_path):
    assert command("kernels", "--tables", "bandwidth") == 0
    rows = json.loads((tmp_path / "out" / "bandwidth.json").read_text())["rows"]
    floats = {row["scan"]: row for row in rows if row["inputs"] == "float32"}
    tensor = 2 * 8 * 16 * 4
    counts = {"copy": 2, "linear_scan": 3, "linear_scan, with backward": 9, "minGRU": 3, "minGRU, with backward": 9}
    for name, tensors in counts.items():
        assert floats[name]["GB/s"] * floats[name]["ms"] * 1e6 == pytest.approx(tensors * tensor)
    assert floats["copy"]["of copy"] == 1


def test_scaling_measures_each_backbone_at_each_length_and_draws_it(command, tmp_path, capsys):
    names = ["mingru", "gru"]
    assert command("scaling", "--lengths", "8,32", "--backbones", ",".join(names)) == 0
    printed = capsys.readouterr().out
    for name in names:
        assert printed.count(f"\n| {name} |") == 2  # time and memory
    points = json.loads((tmp_path / "out" / "scaling.json").read_text())["points"]
    assert {(point["backbone"], point["T"]) for point in points} == {(n, t) for n in names for t in (8, 32)}
    assert all(point["us_per_token"] > 0 and point["B"] * point["T"] == 32 for point in points)
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_length_that_would_take_too_long_is_skipped_and_the_table_says_so(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "peak_memory", lambda point, threads: None)
    assert scaling.main([*TINY["scaling"], "--backbones", "gru", "--limit", "1e-9"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| gru |"))
    assert row.count("skipped") == 2  # the shortest is measured always


def test_peak_memory_grows_with_the_batch_and_holds_what_a_backward_pass_must_keep():
    small, large = (peak_memory(Point("lstm", batch, 64, 64, "cpu"), 1) for batch in (64, 256))
    output = 256 * 64 * 64 * 4
    assert large > 5 * output  # four gates and the cell, of every step
    assert 2.5 < large / small < 5.5


@pytest.mark.parametrize(
    ("benchmark", "mistake", "said"),
    [
        ("kernels", ["--tables", "speed"], "invalid choice: 'speed'"),
        ("kernels", ["--shapes", "3,4"], "'3,4' is not B,T,D, as in 64,60,128"),
        ("kernels", ["--repeats", "0"], "'0' is not a whole number above 0"),
        ("kernels", ["--device", "tpu"], "'tpu' is no device of this machine"),
        ("scaling", ["--backbones", "mingruu"], "did you mean mingru?"),
        ("scaling", ["--tokens", "16"], "--tokens 16 is less than one sequence of 32 steps"),
        ("scaling", ["--limit", "0"], "'0' is not a duration"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(benchmark, mistake, said, command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(benchmark, *mistake)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"python -m benchmarks.{benchmark}: error: ")
    assert said in message
