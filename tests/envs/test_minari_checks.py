"""What Minari's own reader would believe: code, sizes and places that a dataset names."""

import json

import h5py
import numpy as np
import pytest

from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_minari
from unroll.errors import DatasetError

META = {key: "a" for key in ("author", "author_email", "code_permalink", "description")}


@pytest.fixture
def data(make_episodes, tmp_path):
    write_minari(make_episodes([3, 4]), "unit/test-v0", **META)
    assert len(load_episodes("minari:unit/test-v0")) == 2
    return tmp_path / "minari" / "unit" / "test-v0" / "data"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "env_spec",
            json.dumps({"id": "Pendulum-v1", "entry_point": "os:system"}),
            "names os:system as an environment",
        ),
        ("env_spec", json.dumps({"id": "os:system"}), "'os:system' is not the id of an environment"),
        ("total_episodes", 10**12, "the metadata count 1000000000000 episodes"),
        ("observation_space", json.dumps({"type": "Discrete", "start": 0, "n": 10**9}), "a Discrete of 1000000000"),
        ("observation_space", json.dumps({"type": "Box", "shape": [10**12]}), "has 1,000,000,000,000 numbers"),
        ("observation_space", "[" * 100_000, "recursion"),
    ],
)
def test_metadata_that_name_code_or_sizes_that_nothing_has_are_refused(data, key, value, message):
    path = data / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DatasetError, match=message):
        load_episodes("minari:unit/test-v0")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("external link", "episode_0/rewards is a link"),
        ("external storage", "refers to other files"),
        ("10 TB", r"declares 8e\+13 bytes"),
        ("text", "rewards of object"),
    ],
)
def test_data_that_are_elsewhere_or_nowhere_or_no_numbers_are_refused(data, how, message):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        values = file["episode_0/rewards"][()]
        del file["episode_0/rewards"]
        if how == "external link":
            file["episode_0/rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
        elif how == "external storage":
            file.create_dataset("episode_0/rewards", values.shape, values.dtype, external=[("other", 0, values.nbytes)])
        elif how == "10 TB":
            file.create_dataset("episode_0/rewards", (10**13,), "f8", chunks=(1000,))
        else:
            file["episode_0/rewards"] = np.array(["1"] * len(values), h5py.string_dtype())
    with pytest.raises(DatasetError, match=message):
        load_episodes("minari:unit/test-v0")
