"""What a dataset says of its environment beside the id: arguments, step limit, and what no file may say."""

import json
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from toy import TINY
from unroll.agents import DecisionAgent, schemas
from unroll.commands import compare, evaluate, inspect, record, train
from unroll.configs import load_config
from unroll.envs import load_episodes
from unroll.envs.datasets.registered import not_plain
from unroll.errors import CheckpointError

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
RUN = [
    *TINY,
    "--steps",
    "2",
    "--device",
    "cpu",
    "--evaluation.episodes",
    "1",
    "--condition",
    "best",
    "--evaluation.targets",
    "[1]",
]
RUN += ["--dataset", "minari:lake/dry-v0", "--run_dir", "run"]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_lake(tmp_path, spec=None, eval_spec=None, **kwargs):
    """A set of one walk in a FrozenLake with these arguments; ``spec`` adds to what it says of it."""
    env = gym.make("FrozenLake-v1", **kwargs)
    buffer = EpisodeBuffer(
        id=0,
        observations=np.array([0, 4, 8, 9]),
        actions=np.array([1, 1, 2]),
        rewards=np.array([0.0, 0.0, 1.0]),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(3, bool),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("lake/dry-v0", [buffer], env=env, **ABOUT)
    path = tmp_path / "minari" / "lake" / "dry-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | (spec or {}))
    if eval_spec is not None:
        metadata["eval_env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | eval_spec)
    path.write_text(json.dumps(metadata))


def played_in(name="run/evaluation.json"):
    return json.loads(Path(name).read_text()).get("env_kwargs", {})


def test_arguments_and_limit_of_a_minari_set_reach_every_environment_that_the_agent_is_played_in(tmp_path, capsys):
    said = {"is_slippery": False, "max_episode_steps": 50}
    write_lake(tmp_path, **said)
    for _ in range(2):  # the second time it comes from the cache
        assert load_episodes("minari:lake/dry-v0").env_kwargs == said
    assert inspect.main(["minari:lake/dry-v0"]) == 0
    assert "is_slippery False, max_episode_steps 50" in " ".join(capsys.readouterr().out.split())

    assert train.main(RUN) == 0
    assert "evaluated in FrozenLake-v1 with is_slippery False, max_episode_steps 50" in capsys.readouterr().out
    assert played_in() == said
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "3"]) == 0
    assert played_in() == said
    assert evaluate.main(["run", "--output", "again.json"]) == 0
    assert played_in("again.json") == said
    assert evaluate.main(["run/checkpoints/step_00000003", "--output", "alone.json"]) == 0
    assert played_in("alone.json") == said


def test_the_limit_ends_an_episode(tmp_path):
    write_lake(tmp_path, max_episode_steps=3)
    train.main([*RUN, "--steps", "1"])
    assert json.loads(Path("run/evaluation.json").read_text())["results"][0]["lengths"][0] <= 3


def test_a_recording_keeps_the_arguments_of_its_environment(tmp_path):
    write_lake(tmp_path, is_slippery=False)
    train.main(RUN)
    assert record.main(["--run", "run", "--episodes", "2", "--output", "played.hdf5"]) == 0
    assert record.main(["--run", "run", "--episodes", "2", "--output", "minari:lake/played-v0"]) == 0
    learning = ["--algorithm", "ppo", "--env", "FrozenLake-v1", "--env_kwargs", "{is_slippery: false}"]
    assert record.main([*learning, "--steps", "64", "--output", "learned.hdf5"]) == 0
    for source in ("played.hdf5", "minari:lake/played-v0", "learned.hdf5"):
        episodes = load_episodes(source)
        assert (episodes.env_id, episodes.env_kwargs) == ("FrozenLake-v1", {"is_slippery": False}), source


@pytest.mark.parametrize("given", ["{max_episode_steps: 7}", "{}"])
def test_arguments_of_the_user_replace_those_of_the_set(tmp_path, given):
    write_lake(tmp_path, is_slippery=False)
    assert train.main([*RUN, "--evaluation.env_kwargs", given]) == 0
    expected = {"max_episode_steps": 7} if "7" in given else {}
    assert played_in() == expected
    assert evaluate.main(["run", "--env_kwargs", "{is_slippery: true}", "--output", "again.json"]) == 0
    assert played_in("again.json") == {"is_slippery": True}


def test_a_single_argument_is_read_as_what_it_is(tmp_path):
    write_lake(tmp_path, is_slippery=False)
    train.main(RUN)
    single = ["--env_kwargs.is_slippery", "false", "--env_kwargs.max_episode_steps", "7"]
    expected = {"is_slippery": False, "max_episode_steps": 7}
    assert evaluate.main(["run", *single, "--output", "again.json"]) == 0
    assert played_in("again.json") == expected
    assert record.main(["--run", "run", *single, "--episodes", "2", "--output", "played.hdf5"]) == 0
    assert load_episodes("played.hdf5").env_kwargs == expected

    options = ["--cluster_options.timeout_min", "60", "--evaluation.env_kwargs.is_slippery", "false"]
    own, flags = compare.split(compare.make_parser(), options)
    assert compare.make_parser().parse_args(own).cluster_options == {"timeout_min": 60}
    assert load_config(flags, schemas()).evaluation.env_kwargs == {"is_slippery": False}


def test_another_environment_is_not_given_the_sets_arguments(tmp_path):
    write_lake(tmp_path, is_slippery=False)
    gym.register("UnrollTestLake-v0", "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv", max_episode_steps=9)
    try:
        assert train.main([*RUN, "--evaluation.env", "UnrollTestLake-v0"]) == 0
    finally:
        del gym.registry["UnrollTestLake-v0"]
    assert played_in() == {}


def test_the_environment_to_evaluate_in_is_taken_where_the_metadata_name_one(tmp_path, caplog):
    write_lake(tmp_path, eval_spec={"kwargs": {"map_name": "4x4", "is_slippery": False}})
    assert load_episodes("minari:lake/dry-v0").env_kwargs == {"is_slippery": False}
    assert "recorded in FrozenLake-v1, to be evaluated in FrozenLake-v1 (is_slippery False)" in caplog.text


WRAPPER = {"name": "Evil", "entry_point": "nonexistent_module:Evil", "kwargs": {}}


@pytest.mark.parametrize(
    ("spec", "doubt"),
    [
        ({"additional_wrappers": [WRAPPER]}, "wrapper Evil"),
        ({"kwargs": {"reward": "<function f at 0x7f>"}}, "argument reward"),
        ({"kwargs": {"reward": "my_module:pay"}}, "argument reward"),
        ({"kwargs": {"maker": {"entry_point": "my_module"}}}, "argument maker"),
        ({"max_episode_steps": "all"}, "argument max_episode_steps"),
    ],
)
def test_what_is_not_plain_is_said_and_nothing_is_evaluated_unless_the_user_decides(tmp_path, capsys, spec, doubt):
    write_lake(tmp_path, spec)
    assert inspect.main(["minari:lake/dry-v0"]) == 0
    assert f"with {doubt}, which cannot be taken from a file" in " ".join(capsys.readouterr().out.split())
    assert train.main(RUN) == 0
    printed = capsys.readouterr().out
    assert f"no evaluation: lake/dry-v0 was recorded in FrozenLake-v1 with {doubt}" in printed
    assert evaluate.main(["run"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert evaluate.main(["run", "--env_kwargs", "{}", "--output", "again.json"]) == 0
    assert train.main([*RUN[:-1], "other", "--evaluation.env_kwargs", "{}"]) == 0
    assert "no evaluation" not in capsys.readouterr().out


def test_wrappers_that_watch_or_flatten_leave_no_doubt(tmp_path):
    names = ("RecordEpisodeStatistics", "FlattenObservation")
    wrappers = [{"name": name, "entry_point": f"gymnasium.wrappers.common:{name}", "kwargs": None} for name in names]
    write_lake(tmp_path, {"additional_wrappers": wrappers})
    assert load_episodes("minari:lake/dry-v0").env_doubt is None


def test_plain_values_are_told_from_references_to_code():
    assert not not_plain({"xml_file": "hopper.xml", "range": [0.7, float("inf")], "map": ["SF", "FG"], "n": None})
    for wrong in (
        {"id": "x"},
        {"a b": 1},
        {"f": "os:system"},
        {"f": [["os.path:join"]]},
        {"f": "m:Env-v0"},
        {"max_episode_steps": 0},
        [],
    ):
        assert not_plain(wrong)


def test_checkpoints_without_arguments_load_and_those_with_nonsense_do_not(tmp_path):
    write_lake(tmp_path, is_slippery=False)
    agent = DecisionAgent(load_episodes("minari:lake/dry-v0"), context=2, batch_size=2, device="cpu")
    agent.save("with")
    assert DecisionAgent.load("with").task["env_kwargs"] == {"is_slippery": False}
    del agent.task["env_kwargs"], agent.task["env_doubt"]
    agent.save("without")
    assert "env_kwargs" not in DecisionAgent.load("without").task
    agent.task["env_kwargs"] = {"f": "os:system"}
    agent.save("evil")
    with pytest.raises(CheckpointError, match=r"task.env_kwargs: f is no plain value"):
        DecisionAgent.load("evil")
