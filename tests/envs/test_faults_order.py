"""One order of a Dict's parts in a Minari set and in the environment, however the space was written."""

import json
import warnings
from collections import OrderedDict

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from unroll.envs import load_episodes
from unroll.envs.make import make_env
from unroll.errors import DatasetError

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
STEPS = 4


def box(width=1):
    return gym.spaces.Box(-100, 100, (width,), np.float32)


SPACES = {
    "keywords": lambda: gym.spaces.Dict(velocity=box(), position=box(2)),
    "ordered": lambda: gym.spaces.Dict(OrderedDict(velocity=box(), position=box(2))),
    "pairs": lambda: gym.spaces.Dict([("velocity", box()), ("position", box(2))]),
    "plain": lambda: gym.spaces.Dict({"velocity": box(), "position": box(2)}),
    "nested": lambda: gym.spaces.Dict(z=gym.spaces.Dict(b=box(), a=box()), c=gym.spaces.Discrete(3)),
    "tuple": lambda: gym.spaces.Tuple([gym.spaces.Dict(b=box(), a=box()), box()]),
    "goal": lambda: gym.spaces.Dict(
        achieved_goal=box(), desired_goal=gym.spaces.Dict(kettle=box(), burner=box()), observation=box()
    ),
}
TEXTS = {
    "texts": lambda: gym.spaces.Dict(velocity=box(), mission=gym.spaces.Text(4), position=box(2)),
    "textsAndGoal": lambda: gym.spaces.Dict(mission=gym.spaces.Text(4), desired_goal=box(), observation=box(2)),
    "textsAndImage": lambda: gym.spaces.Dict(
        mission=gym.spaces.Text(4), view=gym.spaces.Box(0, 255, (3, 3, 3), np.uint8), turn=gym.spaces.Discrete(4)
    ),
    "textAlone": lambda: gym.spaces.Text(4),
    "textsInDict": lambda: gym.spaces.Dict(a=gym.spaces.Text(4), b=gym.spaces.Text(4)),
    "innerTexts": lambda: gym.spaces.Dict(a=box(), b=gym.spaces.Dict(c=gym.spaces.Text(4), d=box())),
}


class Parts(gym.Env):
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, how="keywords"):
        self.observation_space = (SPACES | TEXTS)[how]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def id_of(name):
    return f"UnrollTestParts{name[0].upper()}{name[1:]}-v0"


for name in SPACES | TEXTS:
    env_id = id_of(name)
    if env_id not in gym.registry:
        gym.register(env_id, Parts, max_episode_steps=STEPS, kwargs={"how": name})


def stack(values):
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack([value[i] for value in values]) for i in range(len(values[0])))
    if isinstance(values[0], str):
        return values
    return np.stack(values)


def record(name, **spec):
    """Record one episode of seed 0 as a Minari set; ``spec`` replaces words of its environment's specification."""
    env = gym.make(id_of(name))
    observations = [env.reset(seed=0)[0]]
    observations += [env.step(np.zeros(1, np.float32))[0] for _ in range(STEPS)]
    ends = np.arange(1, STEPS + 1) == STEPS
    buffer = EpisodeBuffer(
        id=0,
        observations=stack(observations),
        actions=np.zeros((STEPS, 1), np.float32),
        rewards=np.zeros(STEPS),
        terminations=np.zeros(STEPS, bool),
        truncations=ends,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        minari.create_dataset_from_buffers(f"parts/{name}-v0", [buffer], **spaces, **ABOUT)
    return {"id": id_of(name), "additional_wrappers": []} | spec


def name_environment(tmp_path, name, spec):
    path = tmp_path / "minari" / "parts" / f"{name}-v0" / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env_spec": json.dumps(spec)}))


def rows_of_environment(name):
    env = make_env(id_of(name))
    rows = [env.reset(seed=0)[0]]
    rows += [env.step(np.zeros(1, np.float32))[0] for _ in range(STEPS)]
    return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize("name", SPACES)
def test_the_rows_of_a_set_are_those_that_the_environment_shows(name, tmp_path, caplog):
    name_environment(tmp_path, name, record(name))
    episodes = load_episodes(f"minari:parts/{name}-v0")
    assert episodes.env_id == id_of(name)
    rows = rows_of_environment(name)
    np.testing.assert_array_equal(episodes.observations, rows[:-1])
    np.testing.assert_array_equal(episodes.final_observations[0], rows[-1])
    assert not caplog.text


@pytest.mark.parametrize("name", SPACES)
def test_without_the_environment_the_order_is_that_of_the_metadata_and_a_line_says_so(name, tmp_path, caplog):
    name_environment(tmp_path, name, record(name, id="NotHere-v0"))
    for _ in range(2):  # the second time it comes from the cache
        caplog.clear()
        episodes = load_episodes(f"minari:parts/{name}-v0")
        np.testing.assert_array_equal(episodes.observations, rows_of_environment(name)[:-1])
        assert caplog.text.count("in the order of its metadata") == 1
        assert "NotHere-v0 is not here to be asked" in caplog.text


def test_the_environment_decides_where_the_metadata_have_another_order(tmp_path):
    spec = record("plain")
    name_environment(tmp_path, "plain", spec | {"id": "UnrollTestPartsKeywords-v0"})
    episodes = load_episodes("minari:parts/plain-v0")
    position_first = rows_of_environment("plain")[:-1]
    np.testing.assert_array_equal(episodes.observations, position_first[:, [2, 0, 1]])


def test_an_environment_with_parts_of_other_names_is_not_the_sets(tmp_path, caplog):
    spec = record("goal")  # 3 numbers, as are those of the keywords
    name_environment(tmp_path, "goal", spec | {"id": "UnrollTestPartsKeywords-v0"})
    assert load_episodes("minari:parts/goal-v0").env_id is None
    assert "observations of observation, desired_goal (kettle, burner), UnrollTestPartsKeywords-v0 has" in caplog.text


def test_a_set_that_was_read_without_its_environment_is_read_again_with_it(tmp_path):
    spec = record("keywords")
    name_environment(tmp_path, "keywords", spec | {"id": "UnrollTestLate-v0"})
    before = load_episodes("minari:parts/keywords-v0")
    gym.register("UnrollTestLate-v0", Parts, max_episode_steps=STEPS, kwargs={"how": "plain"})
    try:
        after = load_episodes("minari:parts/keywords-v0")
    finally:
        del gym.registry["UnrollTestLate-v0"]
    np.testing.assert_array_equal(before.observations[:, [1, 2, 0]], after.observations)


@pytest.mark.parametrize("name", ["texts", "textsAndGoal", "textsAndImage"])
def test_texts_of_a_set_are_left_out_as_those_of_its_environment(name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("unroll.envs.make._TOLD", set())
    name_environment(tmp_path, name, record(name))
    for _ in range(2):  # the second time it comes from the cache
        caplog.clear()
        episodes = load_episodes(f"minari:parts/{name}-v0")
        lines = [entry.getMessage() for entry in caplog.records]
        texts = f"minari:parts/{name}-v0: mission is text and left out: a policy reads numbers"
        assert lines.count(texts) == 1
        assert not any("taken for" in line or "order" in line for line in lines)
    assert episodes.env_id == id_of(name)
    if episodes.parts is None:
        np.testing.assert_array_equal(episodes.observations, rows_of_environment(name)[:-1])
    else:
        assert episodes.parts == {"turn": (4,), "view": (3, 3, 3)}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("textAlone", "its observations are text alone, of which numbers must be made before they are recorded"),
        ("textsInDict", "its observations are text alone, of which numbers must be made before they are recorded"),
        ("innerTexts", "its observations have a text in an inner part; only those of the outermost Dict are left out"),
    ],
)
def test_texts_that_cannot_be_left_out_are_refused(name, line):
    record(name)
    with pytest.raises(DatasetError, match=f"^minari:parts/{name}-v0: {line}$"):
        load_episodes(f"minari:parts/{name}-v0")
