from __future__ import annotations

import builtins
import json
import warnings

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_minari
from unroll.envs.datasets.sources.minari_set import load_minari
from unroll.envs.make import make_env
from unroll.errors import DatasetError

UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
UNIT = gym.spaces.Box(-1, 1, (1,), np.float32)


def create(lengths, observation, observation_space=UNBOUNDED, action_space=UNIT, action=None, name="unit/test-v0"):
    """A Minari dataset in which ``observation(e, t)`` is seen before step t of episode e, for t = 0 … T."""

    def stacked(values):
        if isinstance(values[0], dict):
            return {key: stacked([value[key] for value in values]) for key in values[0]}
        return np.stack(values)

    buffers = []
    for e, length in enumerate(lengths):
        terminations, truncations = np.zeros((2, length), bool)
        (terminations if e % 2 else truncations)[-1:] = True
        buffers.append(
            EpisodeBuffer(
                id=e,
                observations=stacked([observation(e, t) for t in range(length + 1)]),
                actions=np.array(
                    [action(e, t) if action else [(e + t) / 1000] for t in range(length)], action_space.dtype
                ),
                rewards=np.array([100.0 * e + t for t in range(length)]),
                terminations=terminations,
                truncations=truncations,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari advises its user to name an environment
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=observation_space, action_space=action_space, **META
        )


META = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}


def file_of(tmp_path, name="main_data.hdf5"):
    return tmp_path / "minari" / "unit" / "test-v0" / "data" / name


def test_every_row_of_every_episode_holds_the_observation_before_its_action():
    lengths = [3, 1, 5, 2]
    create(lengths, lambda e, t: np.array([e, t]))
    episodes = load_episodes("minari:unit/test-v0")
    assert episodes.lengths.tolist() == lengths
    row = 0
    for e, length in enumerate(lengths):
        for t in range(length):
            assert episodes.observations[row].tolist() == [e, t]
            assert episodes.actions[row] == pytest.approx((e + t) / 1000)
            assert episodes.rewards[row] == 100 * e + t
            row += 1
        assert episodes.final_observations[e].tolist() == [e, length]
    assert row == episodes.n_steps
    assert episodes.terminated.tolist() == [False, True, False, True]
    assert episodes.truncated.tolist() == [True, False, True, False]
    assert episodes.observations.dtype == np.float32


def test_our_own_minari_sets_come_back_as_they_were_written(make_episodes):
    for discrete in (False, True):
        written = make_episodes([3, 1, 7], discrete=discrete)
        write_minari(written, f"unit/own-v{int(discrete)}", **META)
        read = load_episodes(f"minari:unit/own-v{int(discrete)}")
        for name in ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert read.action_space == written.action_space


ONE, TWO = (gym.spaces.Box(-9, 9, (width,)) for width in (1, 2))
GOAL = gym.spaces.Dict(observation=TWO, achieved_goal=ONE, desired_goal=ONE)


def test_goal_observations_are_observation_then_desired_goal():
    create([2, 2], lambda e, t: {"observation": [e, t], "achieved_goal": [7], "desired_goal": [5 + e]}, GOAL)
    episodes = load_episodes("minari:unit/test-v0")
    assert episodes.observations.tolist() == [[0, 0, 5], [0, 1, 5], [1, 0, 6], [1, 1, 6]]
    assert episodes.final_observations.tolist() == [[0, 2, 5], [1, 2, 6]]


def test_goal_environments_lay_out_their_observation_as_the_datasets_do():
    class Goal(gym.Env):
        observation_space, action_space = GOAL, UNIT

        def reset(self, **kwargs):
            as_float = {"observation": [1, 2], "achieved_goal": [7], "desired_goal": [5]}
            return {key: np.array(value, np.float32) for key, value in as_float.items()}, {}

    gym.register("UnrollTestGoal-v0", Goal, disable_env_checker=True)
    try:
        env = make_env("UnrollTestGoal-v0")
        assert env.reset()[0].tolist() == [1, 2, 5]
        assert env.observation_space.shape == (3,)
    finally:
        del gym.registry["UnrollTestGoal-v0"]


def test_nested_goals_are_flattened_in_the_order_in_which_the_space_was_written():
    box = gym.spaces.Box(-9, 9, (1,))
    nested = gym.spaces.Dict(observation=box, desired_goal=gym.spaces.Dict(kettle=box, burner=box))
    create([1], lambda e, t: {"observation": [t], "desired_goal": {"kettle": [3], "burner": [2]}}, nested)
    assert load_minari("unit/test-v0").observations.tolist() == [[0, 3, 2]]


def test_other_dicts_are_flattened_whole_in_the_order_in_which_the_space_was_written():
    box = gym.spaces.Box(-9, 9, (1,))
    create([1], lambda e, t: {"z": [1], "a": [2]}, gym.spaces.Dict(z=box, a=box))
    assert load_minari("unit/test-v0").observations.tolist() == [[1, 2]]


def test_discrete_observations_become_one_hot():
    create([2], lambda e, t: np.int64(t), gym.spaces.Discrete(3))
    episodes = load_minari("unit/test-v0")
    assert episodes.observations.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert episodes.final_observations.tolist() == [[0, 0, 1]]


def test_discrete_actions_keep_their_space():
    create([3, 2], lambda e, t: np.zeros(2), action_space=gym.spaces.Discrete(5), action=lambda e, t: t)
    episodes = load_episodes("minari:unit/test-v0")
    assert episodes.action_space == gym.spaces.Discrete(5)
    assert episodes.actions.tolist() == [0, 1, 2, 0, 1]
    assert episodes.actions.dtype == np.int64


def test_actions_without_bounds_have_those_of_the_data_until_an_environment_is_known():
    space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    create([3, 2], lambda e, t: np.array([e, t]), action_space=space, action=lambda e, t: [e - t])
    episodes = load_episodes("minari:unit/test-v0")
    assert episodes.guessed
    assert (episodes.action_space.low, episodes.action_space.high) == (-2, 1)


def test_as_many_observations_as_steps_are_refused_by_episode(tmp_path):
    create([3, 2, 4], lambda e, t: np.array([e, t]))
    with h5py.File(file_of(tmp_path), "a") as file:
        shorter = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = shorter
    with pytest.raises(DatasetError, match="episode 1 has 2 observations for 2 steps, as old versions"):
        load_episodes("minari:unit/test-v0")


def test_an_episode_without_steps_is_refused(tmp_path):
    create([3, 2], lambda e, t: np.array([e, t]))
    with h5py.File(file_of(tmp_path), "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations"):
            values = file[f"episode_1/{name}"][:0]
            del file[f"episode_1/{name}"]
            file[f"episode_1/{name}"] = values
    with pytest.raises(DatasetError, match="episode 1 has no steps"):
        load_episodes("minari:unit/test-v0")


def test_reference_scores_of_the_metadata_are_used(tmp_path):
    create([2], lambda e, t: np.zeros(2))
    metadata = json.loads(file_of(tmp_path, "metadata.json").read_text())
    metadata |= {"ref_min_score": -1.5, "ref_max_score": 10.0}
    file_of(tmp_path, "metadata.json").write_text(json.dumps(metadata))
    episodes = load_minari("unit/test-v0")
    assert episodes.reference_returns == (-1.5, 10.0)
    assert episodes.reference_name == "Minari unit/test-v0"


def test_the_environment_is_taken_by_id_and_never_imported(tmp_path):
    create([2], lambda e, t: np.zeros(2))
    metadata = json.loads(file_of(tmp_path, "metadata.json").read_text())
    metadata["env_spec"] = json.dumps(
        {"id": "Evil-v0", "entry_point": "nonexistent_module:Evil", "additional_wrappers": []}
    )
    file_of(tmp_path, "metadata.json").write_text(json.dumps(metadata))
    assert load_episodes("minari:unit/test-v0").env_id == "Evil-v0"
    del metadata["action_space"]  # now Minari itself would build the environment to learn its space
    file_of(tmp_path, "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match="lacks the observation space or the action space"):
        load_minari("unit/test-v0")


def test_a_set_recorded_with_other_options_than_its_environment_names_none(tmp_path, caplog):
    create([2], lambda e, t: np.zeros(2))
    metadata = json.loads(file_of(tmp_path, "metadata.json").read_text())
    metadata["env_spec"] = gym.spec("Pendulum-v1").to_json()
    file_of(tmp_path, "metadata.json").write_text(json.dumps(metadata))
    assert load_episodes("minari:unit/test-v0").env_id is None
    assert "Pendulum-v1 has 3" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "gone", "metadata", "no metadata"])
def test_damaged_files_give_one_line_with_their_folder(tmp_path, damage):
    create([20, 20], lambda e, t: np.zeros(2))
    data, metadata = file_of(tmp_path), file_of(tmp_path, "metadata.json")
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:3000])
    elif damage == "gone":
        data.unlink()
    elif damage == "metadata":
        metadata.write_text("{not json")
    else:
        metadata.unlink()
    with pytest.raises(DatasetError, match="unit/test-v0/data") as error:
        load_episodes("minari:unit/test-v0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["t/x-v0", "no-version", "a b-v0", "../../x-v0", "-v0x"])
def test_malformed_ids_are_refused_and_leave_no_folder(tmp_path, name):
    with pytest.raises(DatasetError, match=r"a Minari id reads namespace/name-v0"):
        load_minari(name)
    assert not (tmp_path / "minari").exists()


def test_without_huggingface_hub_the_message_says_how_to_go_on(monkeypatch):
    original = builtins.__import__

    def without_hub(name, *rest, **more):
        if name.startswith("huggingface_hub"):
            raise ImportError("No module named 'huggingface_hub'")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    with pytest.raises(DatasetError) as error:
        load_episodes("minari:D4RL/nothing/human-v2")
    for part in ("huggingface.co", r"pip install 'unroll-rl[hub]'", "put metadata.json and main_data.hdf5 into"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_names_the_host_and_can_be_tried_again(tmp_path, monkeypatch):
    def fail(dataset_id):
        raise ConnectionError("Max retries exceeded\nwith url")

    monkeypatch.setattr(minari, "download_dataset", fail)
    (tmp_path / "minari/unit/none-v0").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(
            DatasetError, match=r"huggingface.co/farama-minari failed \(Max retries exceeded with url\)"
        ):
            load_minari("unit/none-v0")


def test_a_missing_set_is_downloaded(monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", lambda name: create([2, 3], lambda e, t: np.zeros(2), name=name))
    assert len(load_episodes("minari:unit/remote-v0")) == 2


def test_the_second_load_does_not_ask_minari(monkeypatch):
    rng = np.random.default_rng(0)
    create(rng.integers(1, 8, size=200), lambda e, t: np.array([e, t]))
    first = load_episodes("minari:unit/test-v0")
    monkeypatch.setattr(minari, "load_dataset", None)
    second = load_episodes("minari:unit/test-v0")
    for name in ("observations", "actions", "rewards", "lengths", "terminated", "truncated", "final_observations"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    assert (second.action_space, second.name, second.env_id) == (first.action_space, first.name, first.env_id)
