from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest

from unroll.commands.inspect import main
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.errors import DatasetError


def test_episodes_end_at_terminals_and_timeouts(fields, write):
    episodes = load_hdf5(write(fields))
    assert episodes.lengths.tolist() == [4, 3, 5]
    assert episodes.terminated.tolist() == [True, False, True]
    assert episodes.truncated.tolist() == [False, True, False]
    np.testing.assert_array_equal(episodes.observations, fields["observations"])
    np.testing.assert_array_equal(episodes.actions, fields["actions"])
    assert episodes.final_observations is None


def test_rewards_and_terminals_of_shape_n_by_1_are_read_as_n(fields, write):
    for name in ("rewards", "terminals", "timeouts"):
        fields[name] = fields[name][:, None]
    episodes = load_hdf5(write(fields))
    assert episodes.rewards.shape == (12,)
    assert episodes.lengths.tolist() == [4, 3, 5]


def test_metadata_and_infos_are_ignored(fields, write):
    extra = {"metadata/iteration": np.array(5), "metadata/policy/rewards": np.zeros(3), "infos/actions": np.zeros(7)}
    assert len(load_hdf5(write(fields | extra))) == 3


def test_fields_are_found_inside_a_group(fields, write):
    assert len(load_hdf5(write({f"data/{name}": values for name, values in fields.items()}))) == 3


def test_one_group_per_episode_is_refused(fields, write):
    twice = {f"demo_{i}/{name}": values for i in range(2) for name, values in fields.items()}
    with pytest.raises(DatasetError, match="must be one array over all steps"):
        load_hdf5(write(twice))


def test_a_link_cycle_does_not_trap_the_reader(fields, write):
    path = write(fields)
    with h5py.File(path, "a") as file:
        file.create_group("infos")["loop"] = file["/"]
        file["soft"] = h5py.SoftLink("/soft")
    assert len(load_hdf5(path)) == 3


def test_a_terminal_has_priority_over_a_timeout(fields, write):
    fields["timeouts"][3] = True
    episodes = load_hdf5(write(fields))
    assert episodes.terminated.tolist() == [True, False, True]
    assert episodes.truncated.tolist() == [False, True, False]


def test_an_unfinished_tail_is_an_episode_that_did_not_end(fields, write):
    fields["terminals"][11] = False
    episodes = load_hdf5(write(fields))
    assert episodes.lengths.tolist() == [4, 3, 5]
    assert not episodes.terminated[2]
    assert not episodes.truncated[2]


def test_without_timeouts_and_environment_episodes_end_at_terminals(fields, write):
    del fields["timeouts"]
    assert load_hdf5(write(fields)).lengths.tolist() == [4, 8]


def test_without_timeouts_a_known_environment_limits_the_episodes(write):
    n = 1000
    terminals = np.zeros(n, bool)
    terminals[[9, 209, 700]] = True  # 209 is the 200th step: an end in both ways. Pendulum stops after 200.
    fields = {
        "observations": np.zeros((n, 3), np.float32),
        "actions": np.zeros((n, 1), np.float32),
        "rewards": np.zeros(n),
        "terminals": terminals,
    }
    episodes = load_hdf5(write(fields, env="Pendulum-v1"))
    assert episodes.lengths.tolist() == [10, 200, 200, 200, 91, 200, 99]
    assert episodes.terminated.tolist() == [True, True, False, False, True, False, False]
    assert episodes.truncated.tolist() == [False, False, True, True, False, True, False]


def test_final_observations_come_from_next_observations(fields, write):
    # the jump after row 1 is no episode end, however much next_observations differs from the next row
    episodes = load_hdf5(write(fields | {"next_observations": fields["observations"] + 100}))
    assert len(episodes) == 3
    np.testing.assert_array_equal(episodes.final_observations[:, 0], [103, 106, 111])


def test_our_own_files_come_back_as_they_were_written(make_episodes, tmp_path):
    for discrete in (False, True):
        written = make_episodes([3, 1, 7], discrete=discrete)
        write_hdf5(written, tmp_path / "own.hdf5")
        read = load_hdf5(tmp_path / "own.hdf5")
        for name in ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
            assert getattr(read, name).dtype == getattr(written, name).dtype
        assert read.action_space == written.action_space


@pytest.mark.parametrize("dtype", ["uint8", "float64", "float16", "int32", ">f4"])
def test_observations_of_other_types_become_float32(fields, write, dtype):
    fields["observations"] = fields["observations"].astype(dtype)
    observations = load_hdf5(write(fields)).observations
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(observations[:, 0], np.arange(12))


def test_one_number_per_observation_is_one_column(fields, write):
    fields["observations"] = np.arange(12)
    assert load_hdf5(write(fields)).observations.shape == (12, 1)


def test_discrete_observations_are_one_hot_where_the_environment_makes_them_so(fields, write):
    fields |= {"observations": np.arange(12), "actions": np.zeros(12, int)}
    episodes = load_episodes(str(write(fields, env="FrozenLake-v1")))
    np.testing.assert_array_equal(episodes.observations, np.eye(16)[:12])
    assert episodes.action_space == gym.spaces.Discrete(4)


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_whole_number_actions_are_discrete(fields, write, shape, dtype):
    fields["actions"] = (np.arange(12) % 4).reshape(shape).astype(dtype)
    episodes = load_hdf5(write(fields))
    assert episodes.action_space == gym.spaces.Discrete(4)
    assert episodes.actions.shape == (12,)
    assert episodes.actions.dtype == np.int64


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.arange(12) - 1, "from -1 to 10"),
        (np.arange(12) << 40, "outside of 0"),
        (np.zeros((12, 2), int), "one column"),
    ],
)
def test_impossible_discrete_actions_are_refused(fields, write, actions, message):
    with pytest.raises(DatasetError, match=f"{message}.*the file's attribute env must name it"):
        load_hdf5(write(fields | {"actions": actions}))
    with pytest.raises(DatasetError, match=f"{message}.*; Nowhere-v0, which .* is not registered here"):
        load_hdf5(write(fields | {"actions": actions}, env="Nowhere-v0"))


def test_actions_within_one_get_the_unit_box(fields, write):
    assert load_hdf5(write(fields)).action_space == gym.spaces.Box(-1, 1, (2,), np.float32)


def test_larger_actions_get_the_box_of_their_range(fields, write):
    fields["actions"] = fields["actions"] * 3
    space = load_hdf5(write(fields)).action_space
    np.testing.assert_allclose(space.high, fields["actions"].max(0))
    np.testing.assert_allclose(space.low, fields["actions"].min(0))


def test_a_registered_environment_gives_the_action_space(fields, write):
    fields |= {"actions": np.zeros((12, 1), np.float32)}
    episodes = load_hdf5(write(fields, env="Pendulum-v1"))
    assert episodes.action_space == gym.spaces.Box(-2, 2, (1,), np.float32)
    assert episodes.env_id == "Pendulum-v1"


def test_an_environment_in_a_module_of_the_files_choice_is_refused(fields, write):
    with pytest.raises(DatasetError, match="its attribute env is 'os:system', not the id of an environment"):
        load_hdf5(write(fields, env="os:system"))


def test_an_environment_that_cannot_be_built_is_no_obstacle(fields, write):
    for env in ("Hopper-v2", "NoSuch-v0"):
        episodes = load_hdf5(write(fields, env=env))
        assert episodes.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)


def bad_files():
    yield "empty", b"", "the file is empty"
    yield "web page", b"<!DOCTYPE html><html>404</html>", "web page"
    yield "other", b"PK\x03\x04 something", "not an HDF5 file"


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in bad_files()])
def test_what_is_not_hdf5_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.hdf5"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as error:
        load_hdf5(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_another_process_writes_is_not_called_damaged(fields, write):
    path = write(fields)
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(DatasetError, match="another process has it open for writing; read it when that is done"):
            load_hdf5(path)
    finally:
        writer.communicate()
    assert len(load_hdf5(path)) == 3


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is a folder"):
        load_episodes(str(tmp_path))
    with pytest.raises(DatasetError, match="no such file"):
        load_episodes(str(tmp_path / "none.hdf5"))


def test_files_that_were_cut_or_damaged_anywhere_give_one_line(make_episodes, tmp_path, capsys):
    path = tmp_path / "own.hdf5"
    write_hdf5(make_episodes([50] * 10), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if i % 2 else whole)
        for at in rng.integers(len(damaged), size=0 if i % 2 else 20):
            damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        code = main([str(path)])  # any other exception than a DatasetError would come through
        refused += code == 2
        assert capsys.readouterr().err.count("\n") <= 1
    assert refused >= 30


def test_a_file_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(fields, write):
    path = write({name: values for name, values in fields.items() if name != "observations"})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", shape=(1 << 40, 11), dtype="f4", chunks=(1 << 16, 11))
    with pytest.raises(DatasetError, match=r"observations declares 4.8e\+13 bytes"):
        load_hdf5(path)


def test_text_and_objects_are_refused(fields, write):
    with pytest.raises(DatasetError, match="actions holds object, not numbers"):
        load_hdf5(write(fields | {"actions": np.array(["left"] * 12, dtype=h5py.string_dtype())}))


def test_data_in_other_files_is_not_read(fields, write, tmp_path):
    (tmp_path / "secret").write_bytes(os.urandom(1000))
    del fields["observations"]
    path = write(fields)
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", (12, 3), "f4", external=[(str(tmp_path / "secret"), 0, 144)])
    with pytest.raises(DatasetError, match="refers to other files"):
        load_hdf5(path)


@pytest.mark.parametrize("name", ["actions", "rewards", "terminals", "timeouts"])
def test_fields_of_unequal_length_are_named(fields, write, name):
    fields[name] = fields[name][:-1]
    with pytest.raises(DatasetError, match=f"{name} has 11 rows, observations 12"):
        load_hdf5(write(fields))


def test_missing_fields_are_named(fields, write):
    del fields["rewards"], fields["terminals"]
    with pytest.raises(DatasetError, match="lacks rewards, terminals"):
        load_hdf5(write(fields))


def test_a_file_without_steps_is_refused(fields, write):
    with pytest.raises(DatasetError, match="holds no steps"):
        load_hdf5(write({name: values[:0] for name, values in fields.items()}))


def test_a_conversion_that_took_long_is_cached(fields, write, monkeypatch):
    path = write(fields)
    load_hdf5(path)  # fast: not kept
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("unroll.envs.datasets.cache.time.perf_counter", lambda: next(clock))
    first = load_hdf5(path)
    monkeypatch.setattr("unroll.envs.datasets.sources.hdf5._read", None)
    np.testing.assert_array_equal(load_hdf5(path).observations, first.observations)


def test_an_attribute_is_read_from_an_array_of_one(fields, write):
    assert load_hdf5(write(fields, env=np.array([b"Hopper-v5"]))).env_id == "Hopper-v5"


def test_arguments_that_are_no_json_are_named(fields, write):
    with pytest.raises(DatasetError, match="its attribute env_kwargs is not JSON"):
        load_hdf5(write(fields, env="Pendulum-v1", env_kwargs="{g: 9}"))


def test_whole_numbers_are_continuous_actions_where_the_environment_has_no_others(fields, write):
    whole = fields | {"actions": np.resize([-1, 0, 1], (12, 1))}
    episodes = load_hdf5(write(whole, env="Pendulum-v1"))
    assert episodes.action_space == gym.spaces.Box(-2, 2, (1,), np.float32)
    assert episodes.actions[:3, 0].tolist() == [-1, 0, 1]
