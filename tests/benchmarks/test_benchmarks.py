"""The benchmarks over symbols: their data are right, and every command runs from flags to table."""

import importlib
import json
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks import associative_recall, language_model, parity, recall, selective_copying, velocity
from benchmarks.grid import fitting, once, spread
from benchmarks.tokens import IGNORED, TokenModel, Training
from unroll.policies.backbones import BACKBONES, make_backbone

TEXT = b"the quick brown fox jumps over the lazy dog. " * 20
TINY = {
    "selective_copying": ["--length", "8", "--tokens", "2", "--updates", "2", "--layers", "1,2"],
    "associative_recall": ["--pairs", "2", "--updates", "2"],
    "parity": ["--lengths", "4,6", "--updates", "2"],
    "recall": ["--delays", "3", "--updates", "2", "--layers", "1"],
    "language_model": ["--updates", "2", "--context", "8", "--batch", "4", "--d_model", "16", "--layers", "1"],
}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_selective_copying_asks_for_the_data_symbols_in_their_order():
    sequences, targets = selective_copying.draw(32, 20, 5, random())
    for sequence, target in zip(sequences, targets, strict=True):
        data = sequence[:20][sequence[:20] != selective_copying.NOISE]
        assert target[20:].tolist() == data.tolist()
        assert (sequence[20:] == selective_copying.QUERY).all()
        assert (target[:20] == IGNORED).all()


def test_selective_copying_never_answers_with_noise_or_query_and_scatters_the_data():
    sequences, targets = selective_copying.draw(512, 20, 5, random())
    assert set(targets[:, 20:].flatten().tolist()) == set(range(1, 15))
    share = (sequences[:, :20] != selective_copying.NOISE).float().mean(0)
    assert (share - 5 / 20).abs().max() < 0.1


def test_recall_asks_for_the_first_symbol_which_the_distractors_never_show():
    sequences, targets = recall.draw(256, 10, random())
    assert sequences.shape == (256, 12)
    assert torch.equal(targets[:, -1], sequences[:, 0])
    assert (targets[:, :-1] == IGNORED).all()
    assert set(sequences[:, 0].tolist()) == set(range(recall.CUES))
    assert set(sequences[:, 1:-1].flatten().tolist()) == set(range(recall.CUES, recall.QUERY))
    assert (sequences[:, -1] == recall.QUERY).all()


def test_every_key_is_asked_for_once_and_answered_by_its_value():
    sequences, targets = associative_recall.draw(64, 5, random())
    for sequence, target in zip(sequences.tolist(), targets.tolist(), strict=True):
        keys, values, asked = sequence[:10:2], sequence[1:10:2], sequence[10:]
        assert sorted(asked) == sorted(set(keys))
        known = dict(zip(keys, values, strict=True))
        assert target[10:] == [known[key] - associative_recall.SYMBOLS for key in asked]
        assert set(target[:10]) == {IGNORED}


def test_more_pairs_than_keys_are_refused(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("associative_recall", "--pairs", "4,17")
    assert "'4,17': there are only 16 keys" in capsys.readouterr().err


def test_parity_is_that_of_the_ones_so_far():
    bits, targets = parity.draw(64, 9, random())
    for t in range(9):
        assert torch.equal(targets[:, t], bits[:, : t + 1].sum(1) % 2)


def test_a_velocity_is_twice_what_was_moved_less_the_velocity_before():
    moved, v = velocity.draw(8, 50, random())
    before = torch.cat([torch.zeros(8, 1, 1), v[:, :-1]], 1)
    torch.testing.assert_close(v, 2 * moved - before)
    pushes = v - 0.9 * before
    assert abs(pushes.std() - 1) < 0.1
    assert abs((pushes[:, 1:] * pushes[:, :-1]).mean()) < 0.2  # one says nothing of the next


def test_the_velocity_of_every_backbone_and_of_signed_gates_is_in_a_table(tmp_path, capsys):
    assert velocity.main(["--output", str(tmp_path), "--updates", "2", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    for name in (*BACKBONES, "mingru signed", "minlstm some signed"):
        assert f"| {name} |" in printed
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) > len(BACKBONES)


def test_the_text_is_split_once_and_nothing_is_lost(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(range(100)))
    train, validation, symbols = language_model.read_text(file, 8)
    assert train.tolist() == list(range(90))
    assert validation.tolist() == list(range(90, 100))
    assert symbols == 100


def test_windows_of_text_have_the_next_characters_as_targets_and_reach_both_ends():
    tokens, targets = language_model.draw(torch.arange(30), 500, 8, random())
    assert torch.equal(targets, tokens + 1)
    assert (tokens.min(), targets.max()) == (0, 29)


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_a_carried_validation_is_that_of_one_long_window(name):
    torch.manual_seed(0)
    model = TokenModel(make_backbone(name, 16, 1, **fitting(name, window=100)), 10).double().eval()
    text = torch.randint(10, (66,), generator=random())
    logits, _ = model(text[:64].reshape(2, 32))
    whole = F.cross_entropy(logits.flatten(0, 1), text[1:65]).item()
    assert math.isclose(language_model.nats(model, text, 2, 8, carry=True), whole, rel_tol=1e-9)
    assert not math.isclose(language_model.nats(model, text, 2, 8, carry=False), whole, rel_tol=1e-6)


def test_bits_are_nats_over_ln_2():
    nats = dict.fromkeys(("train_nats", "validation_nats", "best_nats", "carried_nats"), math.log(2) * 1.5)
    result = dict(d_model=8, parameters=1, backbone_parameters=1, updates=1, characters_per_second=1.0) | nats
    row = language_model.columns([result])
    assert (row["validation"], row["nats"]) == ("1.500", f"{1.5 * math.log(2):.3f}")


def test_the_learning_rate_warms_up_and_falls_to_a_tenth_over_updates_or_seconds():
    training = Training(seconds=10.0, lr=1.0, warmup=9)
    assert training.rate(0, 0.0) == pytest.approx(0.1)
    assert training.rate(9, 0.0) == 1.0
    assert training.rate(50, training.spent(50, 10.0)) == pytest.approx(0.1)
    assert Training(updates=100).spent(50, 1e9) == 0.5
    assert Training(updates=100, seconds=10.0).spent(50, 8.0) == 0.8


def test_a_result_is_computed_anew_only_when_its_settings_change(tmp_path):
    for settings, value, expected in (({"a": 1}, 1, 1), ({"a": 1}, 2, 1), ({"a": 2}, 3, 3)):
        assert once(tmp_path, settings, lambda value=value: {"x": value}) == {"x": expected}


def test_a_spread_is_the_mean_with_the_range_of_several():
    assert spread([1234.5]) == "1,234.5"
    assert spread([1.0, 3.0]) == "2.0 (1.0 … 3.0)"


@pytest.fixture
def command(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)

    def run(benchmark, *arguments):
        text = ["--text", str(tmp_path / "text.txt")] if benchmark == "language_model" else []
        main = importlib.import_module(f"benchmarks.{benchmark}").main
        return main([*text, "--output", str(tmp_path / "out"), *TINY[benchmark], *arguments])

    return run


@pytest.mark.parametrize("benchmark", TINY)
def test_a_command_runs_every_backbone_and_prints_a_table(benchmark, command, tmp_path, capsys):
    assert command(benchmark, "--seeds", "2") == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert all(any(row.startswith(f"| {name} |") for row in rows) for name in BACKBONES)
    assert "torch" in printed.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list((tmp_path / "out").glob("*/seed1/events.out.tfevents.*"))
    assert list((tmp_path / "out").glob("*/seed1/metrics.jsonl"))


def test_the_language_model_runs_for_a_time_with_matched_sizes(command, monkeypatch, tmp_path, capsys):
    small = [word for word in TINY["language_model"] if word not in ("--updates", "2")]
    monkeypatch.setitem(TINY, "language_model", small)
    arguments = ["--parameters", "20000", "--backbones", "mingru,gru", "--optimizer", "lamb"]
    assert command("language_model", "--minutes", "0.002", *arguments) == 0
    assert "0.002 minutes" in capsys.readouterr().out
    for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]:
        assert abs(int(row["of the backbone"].replace(",", "")) - 20_000) <= 400


@pytest.mark.parametrize("benchmark", TINY)
@pytest.mark.parametrize(
    "mistake",
    [["--backbones", "mingruu"], ["--updates", "0"], ["--layers", "x"], ["--device", "tpu"], ["--output", "file"]],
)
def test_a_mistake_is_one_line_and_exit_code_2(benchmark, mistake, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    try:
        code = command(benchmark, *mistake)
    except SystemExit as end:
        code = end.code
    assert code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"python -m benchmarks.{benchmark}: ")


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), (b"", "too few"), (b"short", "too few")])
def test_a_text_that_is_missing_or_too_short_is_one_line(text, said, tmp_path, capsys):
    file = tmp_path / "words.txt"
    if text is not None:
        file.write_bytes(text)
    assert language_model.main(["--text", str(file), "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_more_tokens_than_positions_are_refused(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("selective_copying", "--tokens", "9")
    assert "only 8 positions" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", ["recall", "language_model"])
@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_minutes_are_a_number_above_0(benchmark, minutes, command, monkeypatch, capsys):
    monkeypatch.setitem(TINY, benchmark, [])
    with pytest.raises(SystemExit, match="2"):
        command(benchmark, f"--minutes={minutes}")
    assert f"'{minutes}' is not a duration" in capsys.readouterr().err
