"""The training benchmark, tiny."""

import json

from benchmarks import training
from unroll.policies.backbones import BACKBONES


def test_the_training_benchmark_prints_every_backbone_and_writes_its_numbers(tmp_path, capsys):
    small = ["--updates", "1", "--repeats", "1", "--d_model", "16", "--layers", "1", "--batch", "4", "--threads", "1"]
    training.main([*small, "--no-compile", "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["backbone"], row["tokens"]) for row in rows} >= {
        (name, tokens) for name in BACKBONES for tokens in ("fused", "interleaved")
    }
    assert [row["× published"] for row in rows if row["backbone"] == "transformer as published"] == [1]
    assert {row["switches"] for row in rows} == {"", "bfloat16"}
    assert all(f"| {name} | fused |" in printed for name in BACKBONES)
    assert all(row["updates/s"] > 0 and row["sampling, %"] > 0 for row in rows)
