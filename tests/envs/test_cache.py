from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest

from unroll.envs.datasets import cache
from unroll.envs.datasets.cache import cached


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"12345")
    return path


@pytest.fixture
def convert(make_episodes):
    def convert(store):
        convert.calls += 1
        said = {"reference_returns": (-1.0, 5.0), "reference_name": "mine", "guessed": True}
        return dataclasses.replace(make_episodes([3, 4], discrete=convert.discrete), **said)

    convert.calls, convert.discrete = 0, False
    return convert


@pytest.mark.parametrize("discrete", [False, True])
def test_the_second_time_comes_from_the_cache_and_is_the_same(source, convert, discrete):
    convert.discrete = discrete
    first, second = (cached("unit/x", [source], convert) for _ in range(2))
    assert convert.calls == 1
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else None
        assert isinstance(a, np.ndarray) or a == b


def test_a_changed_source_or_variant_is_converted_again(source, convert):
    cached("x", [source], convert)
    cached("x", [source], convert, variant="other environment")
    os.utime(source, ns=(1, 1))
    cached("x", [source], convert)
    source.write_bytes(b"123456")
    cached("x", [source], convert)
    assert convert.calls == 4


@pytest.mark.parametrize("file", ["observations.npy", "lengths.npy", "meta.json", "low.npy"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "pickle"])
def test_a_damaged_entry_is_converted_again_and_repaired(source, convert, tmp_path, caplog, file, damage):
    first = cached("x", [source], convert)
    path = next((tmp_path / "cache").glob(f"*/{file}"))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-3] ^= 4
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    else:
        np.save(path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True)
        path.with_suffix(".npy").replace(path)
    second = cached("x", [source], convert)
    np.testing.assert_array_equal(second.observations, first.observations)
    assert convert.calls == 2
    assert len(caplog.records) == 1
    assert "converted again" in caplog.text
    cached("x", [source], convert)
    assert convert.calls == 2


@pytest.mark.parametrize("said", [{"env_id": ["Hopper-v5"]}, {"name": 3}, {"reference_returns": [1, "x"]}, {"n": "3"}])
def test_an_entry_that_says_nonsense_under_its_checksum_is_converted_again(source, convert, tmp_path, said):
    cached("x", [source], convert)
    path = next((tmp_path / "cache").glob("*/meta.json"))
    meta = json.loads(path.read_text()) | said
    del meta["checksum"]
    path.write_text(json.dumps(meta | {"checksum": cache._meta_checksum(meta)}))
    cached("x", [source], convert)
    assert convert.calls == 2


def test_a_word_of_an_entry_that_was_changed_is_found(source, convert, tmp_path):
    cached("x", [source], convert)
    path = next((tmp_path / "cache").glob("*/meta.json"))
    path.write_text(path.read_text().replace('"name": "', '"name": "a'))
    cached("x", [source], convert)
    assert convert.calls == 2


def test_no_half_written_entry_stays(source, convert, tmp_path, monkeypatch, caplog):
    def fail(*arguments, **more):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", fail)
    assert len(cached("x", [source], convert)) == 2
    assert "not cached (No space left on device)" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_quick_conversions_are_not_kept(source, convert, tmp_path):
    cached("x", [source], convert, min_seconds=60)
    assert not (tmp_path / "cache").exists()
