"""Datasets that are large beside the memory: written block by block, memory-mapped, and learned from as if resident."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import tempfile
import threading
import time
import tracemalloc
import types
import warnings

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unroll.agents import DecisionAgent
from unroll.envs import load_episodes
from unroll.envs.datasets.cache import cached
from unroll.envs.datasets.episodes import is_mapped
from unroll.envs.datasets.recording import write_hdf5, write_minari
from unroll.envs.datasets.sampling import HostSampler, SequenceSampler, make_sampler
from unroll.envs.datasets.sources.hdf5 import _blocks
from unroll.envs.datasets.statistics import moments
from unroll.envs.datasets.store import available_memory
from unroll.errors import DatasetError

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = ("observations", "actions", "rewards", "final_observations")
ARRAYS = (*VALUES, "lengths", "terminated", "truncated")


@pytest.fixture
def large(monkeypatch):
    """Everything is large, and few rows are looked at together."""
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: True)
    monkeypatch.setattr("unroll.envs.datasets.statistics.BLOCK", 50)
    monkeypatch.setattr("unroll.envs.datasets.episodes.STEPS", 7)


@pytest.fixture
def mapped(tmp_path):
    def mapped(episodes):
        arrays, folder = {}, tempfile.mkdtemp(dir=tmp_path)  # a new one: what is mapped must not be written to
        for name in VALUES:
            np.save(f"{folder}/{name}.npy", getattr(episodes, name))
            arrays[name] = np.load(f"{folder}/{name}.npy", mmap_mode="r")
        return dataclasses.replace(episodes, **arrays)

    return mapped


def assert_same_batches(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key]), key


@many
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    context=st.integers(1, 8),
    discrete=st.booleans(),
    data=st.data(),
)
def test_batches_from_mapped_arrays_are_those_from_memory_bit_for_bit(
    make_episodes, mapped, lengths, context, discrete, data
):
    episodes = make_episodes(lengths, discrete=discrete)
    on_disk = mapped(episodes)
    for _ in range(data.draw(st.integers(0, 2))):  # a selection, and one of that
        chosen = np.array(data.draw(st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=5)))
        episodes, on_disk = episodes.select(chosen), on_disk.select(chosen)
    resident, host = SequenceSampler(episodes, context), make_sampler(on_disk, context, "cpu")
    assert isinstance(host, HostSampler)
    for step in (0, 1, 2, 7, 7, 3):  # in a row, and not
        assert_same_batches(resident.sample(16, 5, step), host.sample(16, 5, step))


def test_a_selection_of_mapped_arrays_reads_no_values(make_episodes, mapped):
    top = mapped(make_episodes([5, 9, 3, 8])).top(0.5)
    assert all(is_mapped(getattr(top, name)) for name in ("observations", "actions", "rewards"))
    np.testing.assert_array_equal(top.observations, make_episodes([5, 9, 3, 8]).top(0.5).observations)


@pytest.mark.parametrize("top_fraction", [1.0, 0.5])
def test_the_weights_that_are_learned_are_the_same(make_episodes, mapped, top_fraction):
    weights = []
    for episodes in (make_episodes([30, 9, 14, 22]), mapped(make_episodes([30, 9, 14, 22]))):
        agent = DecisionAgent(
            episodes, context=8, batch_size=16, device="cpu", top_fraction=top_fraction, policy_kwargs=dict(d_model=8)
        )
        agent.learn(5)
        weights.append(agent.policy.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_an_hdf5_file_that_is_large_is_what_it_is_when_small(make_episodes, tmp_path, monkeypatch, request):
    for discrete in (False, True):
        path = tmp_path / f"{discrete}.hdf5"
        write_hdf5(make_episodes([30, 1, 9], discrete=discrete), path)
        small = load_episodes(str(path))
        with monkeypatch.context() as patch:
            patch.setattr("unroll.envs.datasets.cache.is_large", lambda size: True)
            patch.setattr("unroll.envs.datasets.statistics.BLOCK", 50)
            assert_same_episodes(load_episodes(str(path)), small)
            assert_same_episodes(load_episodes(str(path)), small)


def test_a_chunk_of_the_file_is_unpacked_once(tmp_path, large):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        wide = file.create_dataset("observations", data=np.zeros((400, 3)), chunks=(100, 3), compression="gzip")
        narrow = file.create_dataset("rewards", data=np.zeros(400), chunks=(50,), compression="gzip")
        assert [(rows.start, rows.stop) for rows in _blocks(wide, narrow)] == [(i, i + 100) for i in (0, 100, 200, 300)]


def test_final_observations_are_picked_from_blocks(fields, write, large):
    episodes = load_episodes(str(write(fields | {"next_observations": fields["observations"] + 100})))
    np.testing.assert_array_equal(episodes.final_observations[:, 0], [103, 106, 111])


def test_a_minari_set_that_is_large_is_what_it_is_when_small(make_episodes, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_minari(make_episodes([30, 1, 9]), "test/large-v0", description="x")
    small = load_episodes("minari:test/large-v0")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: size > 0)
    assert_same_episodes(load_episodes("minari:test/large-v0"), small)


def test_a_minari_set_that_holds_more_than_it_counts_is_refused(make_episodes, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_minari(make_episodes([30, 1, 9]), "test/more-v0", description="x")
    path = tmp_path / "minari/test/more-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_steps": 31}))
    with pytest.raises(DatasetError, match="the metadata count 31 steps, the episodes hold more"):
        load_episodes("minari:test/more-v0")


def assert_same_episodes(on_disk, small):
    for name in ARRAYS:
        a, b = getattr(on_disk, name), getattr(small, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert all(is_mapped(getattr(on_disk, name)) for name in VALUES)
    assert not any(is_mapped(getattr(small, name)) for name in VALUES)
    for field in dataclasses.fields(small):
        if field.name not in (*ARRAYS, "known_statistics"):
            assert getattr(on_disk, field.name) == getattr(small, field.name)


def test_values_are_judged_once_and_with_the_same_words(make_episodes, tmp_path, monkeypatch):
    episodes = make_episodes([30, 9])
    episodes.observations[17, 1] = np.nan
    episodes.actions[[20, 25]] = 3
    write_hdf5(dataclasses.replace(episodes, env_id="Pendulum-v1"), tmp_path / "bad.hdf5")
    write_hdf5(make_episodes([30, 9]), tmp_path / "good.hdf5")
    with pytest.raises(DatasetError) as small:
        load_episodes(str(tmp_path / "bad.hdf5"))
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: True)
    load_episodes(str(tmp_path / "good.hdf5"))
    for _ in range(2):
        with pytest.raises(DatasetError) as on_disk:
            load_episodes(str(tmp_path / "bad.hdf5"))
        assert str(on_disk.value) == str(small.value)
        monkeypatch.setattr("unroll.envs.datasets.statistics.read", None)  # it need not be read again
    load_episodes(str(tmp_path / "good.hdf5"))


@many
@given(cuts=st.lists(st.integers(1, 99), max_size=5), offset=st.sampled_from([0.0, 1e4]))
def test_moments_of_parts_are_those_of_the_whole(cuts, offset):
    values = np.random.default_rng(0).normal(offset, size=(100, 3)).astype(np.float32)
    mean, std = moments(part for part in np.split(values, sorted(set(cuts))))
    np.testing.assert_allclose(mean, values.mean(0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(std, values.std(0, dtype=np.float64), rtol=1e-12)


def test_sums_and_statistics_do_not_show_where_mapping_cuts(make_episodes, mapped, monkeypatch):
    episodes = make_episodes([5, 1, 12, 3, 8])
    returns, to_go = episodes.returns, episodes.returns_to_go
    monkeypatch.setattr("unroll.envs.datasets.episodes.STEPS", 6)
    np.testing.assert_array_equal(episodes.returns, returns)
    np.testing.assert_array_equal(episodes.returns_to_go, to_go)
    np.testing.assert_array_equal(mapped(episodes).statistics().std, episodes.statistics().std)


def test_a_conversion_holds_a_few_blocks_in_memory(tmp_path, monkeypatch):
    n = 400_000
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"] = np.zeros((n, 30), np.float32)
        file["actions"] = np.zeros((n, 2), np.float64)
        file["rewards"] = np.zeros(n)
        file["terminals"] = np.arange(n) % 100 == 99
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: size > 1e7)
    monkeypatch.setattr("unroll.envs.datasets.statistics.BLOCK", 1 << 20)
    tracemalloc.start()
    episodes = load_episodes(str(tmp_path / "x.hdf5"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(getattr(episodes, name).nbytes for name in ("observations", "actions", "rewards"))
    assert size > 50e6
    assert peak < 15e6


def one_line_about(path, cache):
    with pytest.raises(DatasetError) as error:
        load_episodes(str(path))
    assert "\n" not in str(error.value)
    assert f"{cache}, but: " in str(error.value)
    assert "UNROLL_CACHE names another folder" in str(error.value)
    assert not [file for file in cache.iterdir() if not file.name.endswith(".lock")]
    return str(error.value)


def test_a_disk_without_room_is_one_line_before_anything_is_written(make_episodes, tmp_path, monkeypatch, large):
    write_hdf5(make_episodes([300]), tmp_path / "x.hdf5")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    assert "0.0 GB are free" in one_line_about(tmp_path / "x.hdf5", tmp_path / "cache")


def test_a_disk_that_fills_up_leaves_no_half_entry(make_episodes, tmp_path, large):
    write_hdf5(make_episodes([30_000]), tmp_path / "x.hdf5")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert "File too large" in one_line_about(tmp_path / "x.hdf5", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(load_episodes(str(tmp_path / "x.hdf5"))) == 1


def test_what_a_killed_conversion_left_is_removed(make_episodes, tmp_path, large):
    path = tmp_path / "x.hdf5"
    write_hdf5(make_episodes([30]), path)
    load_episodes(str(path))
    (entry,) = (file for file in (tmp_path / "cache").iterdir() if file.is_dir())
    entry.rename(entry.with_name(f".{entry.name}.part"))  # as if it had been killed just before the end
    assert len(load_episodes(str(path))) == 1
    assert [file.name for file in (tmp_path / "cache").iterdir() if file.is_dir()] == [entry.name]


def test_of_two_that_start_at_once_one_converts(make_episodes, tmp_path, large):
    source = tmp_path / "source"
    source.write_bytes(b"1")
    calls, found = [], []

    def convert(store):
        calls.append(time.sleep(0.2))
        episodes = make_episodes([3, 4])
        store.append(**{name: getattr(episodes, name) for name in VALUES})
        return dataclasses.replace(episodes, **store.arrays())

    threads = [threading.Thread(target=lambda: found.append(cached("x", [source], convert))) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(calls) == 1
    assert [len(episodes) for episodes in found] == [2, 2]


@pytest.mark.parametrize("at", [300, -5])
def test_damage_in_a_sampled_block_of_a_large_array_is_found(make_episodes, tmp_path, monkeypatch, large, caplog, at):
    monkeypatch.setattr("unroll.envs.datasets.cache.SAMPLED_ABOVE", 100)
    monkeypatch.setattr("unroll.envs.datasets.cache.SAMPLES", 4)
    monkeypatch.setattr("unroll.envs.datasets.cache.PART", 200)
    path = tmp_path / "x.hdf5"
    write_hdf5(make_episodes([300]), path)
    first = load_episodes(str(path))
    (file,) = (tmp_path / "cache").glob("*/observations.npy")
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    os.unlink(file)  # and not written into: the first are mapped still
    file.write_bytes(content)
    np.testing.assert_array_equal(load_episodes(str(path)).observations, first.observations)
    assert "damaged cache entry, converted again (observations differs from its checksum)" in caplog.text


def test_available_memory_is_not_more_than_there_is():
    assert 1 << 20 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
