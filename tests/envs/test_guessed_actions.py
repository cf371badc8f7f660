"""Files that name no environment: their action spaces are guessed, and give way to ones that are known."""

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest

from toy import TINY, Toy, make_agent, toy_episodes
from unroll.agents import DecisionAgent
from unroll.commands import evaluate, record, train
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.make import make_env
from unroll.envs.wrappers import for_decisions
from unroll.errors import DatasetError

RUN = [*TINY, "--steps", "1", "--evaluation.episodes", "1", "--evaluation.every", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nameless(name, largest, seed=0):
    """A file of continuous actions, of which the largest has this size."""
    episodes = toy_episodes(4, seed=seed)
    actions = episodes.actions * np.float32(largest / np.abs(episodes.actions).max())
    space = gym.spaces.Box(-largest, largest, (1,), np.float32)
    write_hdf5(dataclasses.replace(episodes, actions=actions, action_space=space, env_id=None), name)
    return name


def discrete(name, n, env=None):
    episodes = toy_episodes(4, discrete=True)
    actions = np.minimum(episodes.actions, n - 1)
    write_hdf5(dataclasses.replace(episodes, actions=actions, env_id=None), name)
    if env:
        with h5py.File(name, "a") as file:
            file.attrs["env"] = env
    return name


def bounds(space):
    return float(space.low[0]), float(space.high[0])


@pytest.mark.parametrize(("largest", "learned"), [(0.5, 2), (1.9, 2), (2.5, None)])
def test_guessed_bounds_are_those_of_the_environment_to_evaluate_in(largest, learned, capsys):
    source = nameless("data.hdf5", largest)
    guess = load_episodes(source).action_space
    assert train.main(["--dataset", source, "--run_dir", "run", *RUN, "--evaluation.env", "ToyBox-v0"]) == 0
    config = DecisionAgent.load("run").policy.config["action_space"]
    said = capsys.readouterr().out
    if learned:
        assert (config["low"], config["high"]) == ([-2], [2])
        assert "actions are bounded as in ToyBox-v0: Box(-2, 2, 1 wide)" in said
        assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "2"]) == 0
    else:
        assert (config["low"][0], config["high"][0]) == pytest.approx(bounds(guess))
        assert "actions do not all lie in ToyBox-v0's Box(-2, 2, 1 wide): they are bounded as the data are" in said


def test_what_is_chosen_beyond_the_bounds_is_cut_when_played():
    """Whoever plays: the toy pays the action that it is given."""
    env = for_decisions(make_env("ToyBox-v0"), 0.0)
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.array([5], np.float32))
    assert reward == 2
    assert observation["previous_action"] == 5  # as the data have it


def test_a_recording_without_noise_is_what_is_evaluated():
    episodes = load_episodes(nameless("data.hdf5", 2.5))
    episodes.actions[:] = 2.5
    episodes.actions[0] = -2.5
    write_hdf5(episodes, "data.hdf5")
    learned = ["--steps", "30", "--learning_rate", "0.03", "--evaluation.env", "ToyBox-v0"]
    assert train.main(["--dataset", "data.hdf5", "--run_dir", "run", *RUN, *learned]) == 0
    assert record.main(["--run", "run", "--episodes", "2", "--seed", "1000000", "--output", "played.hdf5"]) == 0
    assert evaluate.main(["run", "--episodes", "2", "--output", "played.json"]) == 0
    (result,) = json.loads(Path("played.json").read_text())["results"]
    played = load_episodes("played.hdf5")
    assert played.returns.tolist() == result["returns"]
    assert played.actions.max() == 2


def test_an_environment_that_is_not_imported_is_no_fault_of_the_data(capsys):
    with h5py.File(nameless("data.hdf5", 1), "a") as file:
        actions = file["actions"][()]
        del file["actions"]
        file["actions"] = (3 * actions).astype(np.int64) - 2
    Path("run.yaml").write_text("dataset: data.hdf5\nevaluation: {env: 'mine:Mine-v0'}\n")
    assert train.main(["--config", "run.yaml"]) == 2
    assert "environment mine:Mine-v0 is not imported" in capsys.readouterr().err


def test_bounds_that_a_file_knows_stay(capsys):
    write_hdf5(toy_episodes(4), "named.hdf5")
    assert not load_episodes("named.hdf5").guessed
    assert train.main(["--dataset", "named.hdf5", "--run_dir", "run", *RUN, "--evaluation.env", "ToyBox-v0"]) == 0
    assert "actions" not in capsys.readouterr().out


class Narrow(Toy):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(-0.5, 0.5, (1,), np.float32)


gym.register("UnrollTestNarrow-v0", Narrow)


def test_actions_that_are_cut_in_another_environment_are_told(capsys):
    write_hdf5(toy_episodes(4), "named.hdf5")
    run = ["--dataset", "named.hdf5", "--run_dir", "run", *RUN, "--evaluation.env", "UnrollTestNarrow-v0"]
    assert train.main(run) == 0
    told = "actions do not all lie in UnrollTestNarrow-v0's Box(-0.5, 0.5, 1 wide): they are bounded as the data are"
    assert told in capsys.readouterr().out


def test_guessed_bounds_are_joined():
    both = [nameless("a.hdf5", 1.5), nameless("b.hdf5", 1.8, seed=1)]
    spaces = [load_episodes(source).action_space for source in both]
    joined = load_episodes(both)
    low, high = (np.array([bounds(space)[i] for space in spaces]) for i in range(2))
    assert bounds(joined.action_space) == (low.min(), high.max())
    assert joined.guessed
    assert any("actions whose space nothing names are taken as those of Box(" in text for text in joined.remarks)

    write_hdf5(toy_episodes(4), "named.hdf5")
    for sources in (["named.hdf5", *both], [*both, "named.hdf5"]):
        joined = load_episodes(sources)
        assert bounds(joined.action_space) == (-2, 2)
        assert not joined.guessed
    with pytest.raises(DatasetError, match="cannot be joined"):
        load_episodes(["named.hdf5", nameless("far.hdf5", 2.5)])


def test_guessed_choices_are_joined():
    few, many = discrete("few.hdf5", 2), discrete("many.hdf5", 3)
    assert load_episodes([few, many]).action_space == gym.spaces.Discrete(3)
    named = discrete("named.hdf5", 3, env="ToyDiscrete-v0")
    joined = load_episodes([few, named])
    assert (joined.action_space, joined.guessed) == (gym.spaces.Discrete(3), False)
    with pytest.raises(DatasetError, match="cannot be joined"):
        load_episodes([nameless("box.hdf5", 1), few])


def as_floats(name, n):
    """A file of discrete actions, counted in floats."""
    with h5py.File(discrete(name, n), "a") as file:
        actions = file["actions"][()].astype(np.float32)
        del file["actions"]
        file["actions"] = actions
    return name


def test_whole_floats_are_choices_where_an_environment_has_some(caplog, capsys):
    source = as_floats("floats.hdf5", 3)
    episodes = load_episodes(source)
    assert isinstance(episodes.action_space, gym.spaces.Box)
    assert "actions are floats, all of them whole numbers from 0, and no environment says" in caplog.text
    assert train.main(["--dataset", source, "--run_dir", "run", *RUN, "--evaluation.env", "ToyDiscrete-v0"]) == 0
    assert "discrete actions are counted as in ToyDiscrete-v0: Discrete(3)" in capsys.readouterr().out
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "2"]) == 0

    named = discrete("named.hdf5", 3, env="ToyDiscrete-v0")
    joined = load_episodes([source, named])
    assert (joined.action_space, joined.actions.dtype) == (gym.spaces.Discrete(3), np.int64)
    np.testing.assert_array_equal(joined.actions[: episodes.n_steps], episodes.actions[:, 0])
    for other in (gym.spaces.Discrete(2), gym.spaces.Discrete(9, start=1)):  # which do not hold all of them
        assert episodes.counted_as(other) is episodes
    assert episodes.counted_as(gym.spaces.Discrete(4, start=-1)).actions.min() == episodes.actions.min() + 1


@pytest.mark.parametrize("order", [1, -1])
def test_choices_in_floats_are_joined_to_choices_that_nothing_names_either(order):
    sources = [discrete("few.hdf5", 2), as_floats("floats.hdf5", 3)][::order]
    actions = np.concatenate([np.ravel(load_episodes(source).actions) for source in sources])
    joined = load_episodes(sources)
    assert (joined.action_space, joined.guessed) == (gym.spaces.Discrete(3), True)
    assert joined.actions.dtype == np.int64
    np.testing.assert_array_equal(joined.actions, actions)
    with pytest.raises(DatasetError, match=r"Discrete\(2\).*these cannot be joined"):  # as they were guessed
        load_episodes(["few.hdf5", nameless("box.hdf5", 2.5)])


def test_whole_numbers_are_continuous_where_the_environment_has_a_box(capsys):
    source = discrete("data.hdf5", 3)
    episodes = load_episodes(source)
    for box in (gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-np.inf, np.inf, (1,))):
        assert episodes.counted_as(box) is episodes  # which does not hold them all, or has no bounds
    exact = episodes.counted_as(gym.spaces.Box(0, 2, (1,), np.uint8))
    assert (bounds(exact.action_space), exact.guessed) == ((0, 2), False)
    np.testing.assert_array_equal(exact.actions[:, 0], episodes.actions)

    assert train.main(["--dataset", source, "--run_dir", "run", *RUN, "--evaluation.env", "ToyBox-v0"]) == 0
    assert "actions are bounded as in ToyBox-v0: Box(-2, 2, 1 wide)" in capsys.readouterr().out
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "2"]) == 0


def test_floats_that_are_no_choices_are_not_told(caplog):
    for name, floats in (("some.hdf5", 0.5), ("none.hdf5", 0.0)):
        write_hdf5(dataclasses.replace(toy_episodes(4), env_id=None), name)
        with h5py.File(name, "a") as file:
            file["actions"][...] = floats
        assert load_episodes(name).guessed
    assert "floats" not in caplog.text


def test_an_agent_goes_on_with_another_file_whose_actions_lie_within_its_own():
    agent = make_agent(load_episodes(nameless("wide.hdf5", 1.8)))
    agent.set_episodes(load_episodes(nameless("narrow.hdf5", 1.2)))
    agent.learn(1)
    with pytest.raises(DatasetError, match="the agent was trained on Box"):
        agent.set_episodes(load_episodes(nameless("far.hdf5", 2.5)))


def test_a_large_set_in_the_cache_takes_known_bounds(monkeypatch):
    source = nameless("data.hdf5", 1.5)
    monkeypatch.setattr("unroll.envs.datasets.cache.is_large", lambda size: True)
    episodes = load_episodes(source)
    assert episodes.guessed
    wider = episodes.counted_as(gym.spaces.Box(-2, 2, (1,), np.float32))
    assert (bounds(wider.action_space), wider.guessed) == ((-2, 2), False)
    assert wider.known_statistics.outside == (0, 0)
