"""Images in datasets: rows of bytes that hold what the environment showed, in RAM, in files and in batches."""

import dataclasses

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from image_envs import LENGTH, SPACES, name_of, record
from unroll.commands import inspect
from unroll.envs import load_episodes
from unroll.envs.datasets.doctor import problems
from unroll.envs.datasets.episodes import is_mapped
from unroll.envs.datasets.images import as_numbers, check_parts, numbers, parts_of, row_bytes, unpack
from unroll.envs.datasets.recording import write_hdf5, write_minari
from unroll.envs.datasets.sampling import HostSampler, SequenceSampler, make_sampler
from unroll.envs.make import make_env
from unroll.envs.wrappers import image_rows
from unroll.errors import DatasetError

KINDS = list(SPACES)
ABOUT = dict(author="unit", author_email="unit@example.org", code_permalink="unit", algorithm_name="unit")


def assert_same(a, b):
    for field in ("observations", "final_observations", "actions", "rewards", "lengths", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
    assert (a.parts, a.env_id, a.action_space) == (b.parts, b.env_id, b.action_space)
    assert b.observations.dtype == b.final_observations.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_holds_what_the_environment_showed(kind):
    shown = []
    episodes = record(kind, n=2, shown=shown)
    assert episodes.observations.shape == (2 * LENGTH, row_bytes(episodes.parts))
    assert episodes.observations.dtype == np.uint8
    rows = np.insert(episodes.observations, LENGTH, episodes.final_observations[0], 0)  # where the first one ended
    parts = unpack(episodes.parts, rows)
    for t, observation in enumerate(shown[:-1]):
        if kind != "dict":
            np.testing.assert_array_equal(parts[""][t], observation)
            continue
        np.testing.assert_array_equal(parts["view"][t], observation["view"])
        np.testing.assert_array_equal(parts["a"][t], observation["a"])
        np.testing.assert_array_equal(parts["speed"][t], observation["speed"].ravel())
        np.testing.assert_array_equal(parts["turn"][t], np.eye(3)[observation["turn"] - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_back_the_rows_that_were_recorded(kind, tmp_path):
    episodes = record(kind)
    write_hdf5(episodes, tmp_path / "own.hdf5")
    assert_same(episodes, load_episodes(str(tmp_path / "own.hdf5")))
    write_minari(episodes, "unit/images-v0", **ABOUT)
    for _ in range(2):  # the second time it comes from the cache
        assert_same(episodes, load_episodes("minari:unit/images-v0"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_shows_the_row_that_was_recorded(kind):
    episodes = record(kind, n=1)
    env = image_rows(make_env(name_of(kind), images=True))
    row, _ = env.reset(seed=0)
    assert env.observation_space.contains(row)
    np.testing.assert_array_equal(row, episodes.observations[0])
    np.testing.assert_array_equal(env.step(0)[0], episodes.observations[1])


def test_bytes_along_three_axes_are_images_unless_the_environment_shows_none(fields, write):
    images = np.random.default_rng(0).integers(256, size=(12, 4, 5, 3)).astype(np.uint8)
    fields["observations"] = images
    episodes = load_episodes(str(write(fields)))
    assert episodes.parts == {"": (4, 5, 3)}
    np.testing.assert_array_equal(episodes.observations, images.reshape(12, -1))
    # The same file as it was read before: rows of numbers, for an agent that has learned from such rows.
    np.testing.assert_array_equal(episodes.without_images().observations, images.reshape(12, -1).astype(np.float32))
    with pytest.raises(DatasetError, match="observations is 60 wide, CartPole-v1's are 4"):
        load_episodes(str(write(fields, env="CartPole-v1")))


def test_images_that_are_too_large_are_one_line(fields, write):
    fields["observations"] = np.zeros((12, 1200, 1200, 3), np.uint8)
    with pytest.raises(DatasetError, match=r"hdf5: an observation of 4,320,000 bytes, more than 4,194,304$"):
        load_episodes(str(write(fields)))


@pytest.mark.parametrize("sampler", [SequenceSampler, HostSampler])
def test_batches_hold_bytes_whatever_the_sampler(sampler, tmp_path, monkeypatch):
    episodes = record("dict")
    cut = sampler(episodes, 4).sample(8, seed=1, step=2)
    assert cut["observation"].dtype == torch.uint8
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: True)
    write_hdf5(episodes, tmp_path / "large.hdf5")
    mapped = load_episodes(str(tmp_path / "large.hdf5"))
    assert is_mapped(mapped.observations)
    from_disk = make_sampler(mapped, 4, "cpu").sample(8, seed=1, step=2)
    for key, value in cut.items():
        assert torch.equal(value, from_disk[key]), key


def test_ram_holds_images_once_and_as_bytes():
    episodes = record("image")
    assert isinstance(make_sampler(episodes, 4, "cpu"), HostSampler)
    assert episodes.observations.nbytes == episodes.n_steps * 36 * 37 * 3


def test_statistics_and_faults_are_those_of_the_numbers_beside_images(tmp_path):
    episodes = record("dict")
    seen = numbers(episodes.parts, episodes.observations)
    statistics = episodes.statistics()
    np.testing.assert_allclose(statistics.mean, seen.mean(0, dtype=np.float64))
    assert seen.shape[1] == 7
    assert as_numbers(episodes.parts, episodes.observations, most=8).shape == (episodes.n_steps, 8)

    # a NaN in the speed of row 5
    rows = episodes.observations.copy()
    rows[5, 9:13].view(np.float32)[:] = np.nan
    (found,) = problems(dataclasses.replace(episodes, observations=rows))
    assert found == "observations is NaN or infinite in 1 rows, first in row 5"


def test_the_doctor_shows_a_dataset_of_images(tmp_path, capsys):
    write_hdf5(record("dict"), tmp_path / "own.hdf5")
    page = tmp_path / "page.png"
    assert inspect.main([str(tmp_path / "own.hdf5"), "--page", str(page)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a 3 × 3 × 1 bytes, speed 4 numbers, turn 3 numbers, view 5 × 4 × 3 bytes" in printed
    assert page.stat().st_size > 10_000


def test_images_that_the_environment_does_not_show_are_one_line(tmp_path):
    episodes = record("grid")
    write_hdf5(dataclasses.replace(episodes, env_id=name_of("image")), tmp_path / "other.hdf5")
    wanted = r"observations is images of 5 × 4 × 3 bytes, Pictures-image-v0's are images of 36 × 37 × 3 bytes"
    with pytest.raises(DatasetError, match=wanted):
        load_episodes(str(tmp_path / "other.hdf5"))


@pytest.mark.parametrize(
    "parts", ['{"a": [3, 3]}', '{"a": [4]}', '{"": [0, 4, 3]}', '{"": [9999, 9999, 9]}', "[]", "{", '{"": [5, 4, 4]}']
)
def test_a_file_that_describes_its_parts_wrongly_is_refused(parts, tmp_path):
    write_hdf5(record("dict"), tmp_path / "own.hdf5")
    with h5py.File(tmp_path / "own.hdf5", "a") as file:
        file.attrs["parts"] = parts
    with pytest.raises(DatasetError, match="its attribute parts"):
        load_episodes(str(tmp_path / "own.hdf5"))


def test_what_is_beside_images_must_be_numbers():
    odd = gym.spaces.Dict(view=SPACES["grid"], more=gym.spaces.Sequence(gym.spaces.Discrete(2)))
    assert parts_of(odd) is None
    assert check_parts({"b": [2], "a": [1, 2, 3]}) == {"a": (1, 2, 3), "b": (2,)}
