"""Observations of a dataset are flattened as Gymnasium flattens them; what a set does to them is told."""

import json
import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from unroll.envs import load_episodes
from unroll.envs.datasets.conversion import flatten
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.errors import DatasetError

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
UNIT = gym.spaces.Box(-1, 1, (1,), np.float32)
S = gym.spaces
SPACES = {
    "several": S.MultiDiscrete([3, 4]),
    "several from 1": S.MultiDiscrete([3, 4], start=[1, -2]),
    "a grid of several": S.MultiDiscrete([[2, 3], [4, 5]]),
    "binary": S.MultiBinary(4),
    "a grid of binary": S.MultiBinary([2, 3]),
    "one from -2": S.Discrete(5, start=-2),
    "a scalar": S.Box(-1, 1, (), np.float64),
    "bool": S.Box(0, 1, (3,), np.bool_),
    "nested": S.Dict(b=S.MultiDiscrete([2, 2]), a=S.Tuple([S.MultiBinary(2), S.Discrete(3), S.Box(-1, 1, (2, 2))])),
}


def stack(values):
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack([value[i] for value in values]) for i in range(len(values[0])))
    return np.stack(values)


def write_minari(space, observations, **more):
    steps = len(observations) - 1
    buffer = EpisodeBuffer(
        id=0,
        observations=stack(observations),
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps),
        terminations=np.arange(1, steps + 1) == steps,
        truncations=np.zeros(steps, bool),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces = {"observation_space": space, "action_space": UNIT}
        minari.create_dataset_from_buffers("unit/spaces-v0", [buffer], **spaces, **ABOUT, **more)


@pytest.mark.parametrize("name", SPACES)
def test_every_observation_is_flattened_as_gymnasium_does(name):
    space = SPACES[name]
    space.seed(0)
    observations = [space.sample() for _ in range(9)]
    expected = np.stack([gym.spaces.flatten(space, one) for one in observations]).astype(np.float32)
    np.testing.assert_array_equal(flatten(space, stack(observations)), expected)
    write_minari(space, observations)
    episodes = load_episodes("minari:unit/spaces-v0")
    np.testing.assert_array_equal(episodes.observations, expected[:-1])
    np.testing.assert_array_equal(episodes.final_observations[0], expected[-1])


@pytest.mark.parametrize("values", [[[0, 0]], [[1, 5]], [[3, 1]]])
def test_values_outside_of_several_choices_are_refused(values):
    with pytest.raises(ValueError, match="lies outside of Discrete"):
        flatten(S.MultiDiscrete([2, 3], start=[1, 1]), np.array(values))
    with pytest.raises(ValueError, match="their space says"):
        flatten(S.MultiDiscrete([2, 3]), np.zeros((4, 3), int))


@pytest.mark.parametrize(
    "said", ['{"type": "MultiDiscrete", "nvec": [70000]}', '{"type": "MultiBinary", "n": [5000, 5000]}']
)
def test_spaces_of_more_than_can_be_are_refused(said, tmp_path):
    write_minari(S.MultiDiscrete([2]), [np.zeros(1, int)] * 3)
    path = tmp_path / "minari/unit/spaces-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"observation_space": said}))
    with pytest.raises(DatasetError, match=r"observation_space is a Multi\w+ of \d+"):
        load_episodes("minari:unit/spaces-v0")


class Shown(gym.Env):
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, name="several"):
        self.observation_space = SPACES[name]


for i, name in enumerate(("several", "several from 1", "one from -2")):
    if f"UnrollTestShown{i}-v0" not in gym.registry:
        gym.register(f"UnrollTestShown{i}-v0", Shown, kwargs={"name": name}, disable_env_checker=True)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
@pytest.mark.parametrize(("env", "name"), [(0, "several"), (1, "several from 1"), (2, "one from -2")])
def test_whole_numbers_of_a_file_are_one_hot_where_the_environments_are(fields, write, env, name, dtype):
    space = SPACES[name]
    space.seed(0)
    states = np.stack([space.sample() for _ in range(12)])
    fields["observations"] = states.astype(dtype)
    episodes = load_episodes(str(write(fields, env=f"UnrollTestShown{env}-v0")))
    expected = np.stack([gym.spaces.flatten(space, one) for one in states])
    np.testing.assert_array_equal(episodes.observations, expected)

    if dtype == np.float32:
        for other in (0.5, np.nan):  # which are no numbers of states
            fields["observations"][3] = other
            episodes = load_hdf5(write(fields, env=f"UnrollTestShown{env}-v0"))
            assert episodes.observation_dim == states[0].size


@pytest.mark.parametrize("final", ["final_observations", "next_observations"])
@pytest.mark.parametrize("name", ["several from 1", "one from -2"])
def test_what_comes_after_the_end_is_one_hot_whatever_its_type(fields, write, final, name):
    """Float, with NaN where it is not known, beside whole numbers."""
    space = SPACES[name]
    space.seed(0)
    env = {"several from 1": 1, "one from -2": 2}[name]
    rows = np.stack([space.sample() for _ in range(24)])
    after = rows[12:].astype(np.float32)
    ends = [3, 6, 11]
    if final == "final_observations":
        after = after[ends]
        ends = [0, 1, 2]
    after[ends[1]] = np.nan
    fields |= {"observations": rows[:12], final: after}
    fields.pop("next_observations" if final == "final_observations" else "final_observations", None)
    found = load_hdf5(write(fields, env=f"UnrollTestShown{env}-v0")).final_observations
    for i in (0, 2):
        np.testing.assert_array_equal(found[i], gym.spaces.flatten(space, after[ends[i]].astype(int)))
    assert np.isnan(found[1]).all()

    for wrong in (0.5, 100, np.inf):
        after[ends[0]] = wrong
        with pytest.raises(DatasetError, match=r"after the ends of episodes are none|lies outside of"):
            load_hdf5(write(fields, env=f"UnrollTestShown{env}-v0"))


def test_whole_numbers_are_not_one_hot_where_the_environment_shows_a_row_of_numbers(fields, write):
    """Pendulum shows 3 numbers: states 0, 1, 2 are none of its observations."""
    fields |= {"observations": np.arange(12) % 3, "actions": np.zeros((12, 1), np.float32)}
    assert load_hdf5(write(fields, env="Pendulum-v1")).observation_dim == 1


@pytest.mark.parametrize("raw", [False, True])
def test_images_that_are_kept_as_jpegs_are_told_once(raw, caplog):
    space = S.Dict(camera=S.Box(0, 255, (32, 32, 3), np.uint8), place=S.Box(-1, 1, (2,), np.float32))
    space.seed(0)
    write_minari(space, [space.sample() for _ in range(4)], jpeg_encoding=not raw)
    for _ in range(2):  # the second time it comes from the cache
        caplog.clear()
        load_episodes("minari:unit/spaces-v0")
        assert caplog.text.count("its images are JPEGs") == (0 if raw else 1)


def test_images_too_small_for_a_jpeg_are_not_told(caplog):
    space = S.Box(0, 255, (8, 8, 3), np.uint8)
    space.seed(0)
    write_minari(space, [space.sample() for _ in range(4)])
    load_episodes("minari:unit/spaces-v0")
    assert "JPEG" not in caplog.text
