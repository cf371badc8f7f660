"""Several datasets in one run: joined where their spaces are the same, and drawn as often as weights say."""

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from image_envs import record
from toy import TINY, make_agent, toy_episodes
from unroll.agents import DecisionAgent, schemas
from unroll.commands import evaluate, inspect, train
from unroll.comparison.report import _in_words
from unroll.configs import load_config, load_saved
from unroll.envs import load_episodes
from unroll.envs.datasets.joining import join
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.datasets.sampling import HostSampler, SequenceSampler
from unroll.errors import DatasetError

FAST = [*TINY, "--evaluation.episodes", "2", "--evaluation.every", "0", "--device", "cpu", "--warmup_steps", "2"]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A good set of 5 episodes, and a worse one of 15."""
    monkeypatch.chdir(tmp_path)
    good = toy_episodes(5, seed=1)
    good = dataclasses.replace(good, rewards=good.rewards + 5)
    worse = toy_episodes(15, seed=2)
    write_hdf5(good, "good.hdf5")
    write_hdf5(worse, "worse, of old.hdf5")
    return ["good.hdf5", "worse, of old.hdf5"]


def test_joined_episodes_are_those_of_each_in_order(two):
    several = [load_episodes(source) for source in two]
    joined = load_episodes(two)
    assert (len(joined), joined.n_steps, joined.name) == (20, 240, "good+worse, of old")
    np.testing.assert_array_equal(joined.returns, np.concatenate([episodes.returns for episodes in several]))
    for i in range(2):
        own = joined.select(np.flatnonzero(joined.origin == i))
        assert len(own) == len(several[i])
        for field in ("observations", "actions", "rewards", "terminated", "final_observations"):
            np.testing.assert_array_equal(getattr(own, field), getattr(several[i], field), err_msg=field)


def test_images_are_joined_as_bytes():
    joined = join([record("dict", 2), record("dict", 3)], ["a", "b"])
    assert joined.observations.dtype == np.uint8
    assert joined.parts == record("dict", 1).parts
    assert make_agent(joined).learn(1).num_timesteps == 1


@pytest.mark.parametrize("sampler", [SequenceSampler, HostSampler])
def test_each_is_drawn_as_often_as_its_weight_says(two, sampler):
    joined = load_episodes(two, weights=[3, 1])
    draws = sampler(joined, 4).draws
    rows = np.concatenate([draws.draw(1000, 0, step) for step in range(100)])
    of_good = rows < 60
    assert of_good.mean() == pytest.approx(0.75, abs=0.01)
    for n, low in ((60, 0), (180, 60)):  # within a dataset every step alike
        counts = np.bincount(rows[(rows >= low) & (rows < low + n)] - low, minlength=n)
        assert counts.min() > 0.5 * counts.mean()
        assert counts.max() < 1.6 * counts.mean()
    np.testing.assert_array_equal(draws.draw(8, 1, 2), sampler(joined, 4).draws.draw(8, 1, 2))

    # Without weights all steps are drawn as those of one dataset are.
    plain = sampler(load_episodes(two), 4).draws
    alone = sampler(dataclasses.replace(joined, origin=None, odds=None), 4).draws
    np.testing.assert_array_equal(plain.draw(64, 0, 3), alone.draw(64, 0, 3))


def test_both_samplers_give_the_same_batches(two):
    joined = load_episodes(two, weights=[1, 9]).top(0.5)
    batches = [sampler(joined, 5).sample(16, 3, 4) for sampler in (SequenceSampler, HostSampler)]
    for key, values in batches[0].items():
        assert torch.equal(values, batches[1][key]), key


def test_with_weights_the_best_episodes_are_those_of_each(two):
    assert set(load_episodes(two).top(0.2).origin) == {0}
    best = load_episodes(two, weights=[1, 3]).top(0.2)
    assert np.bincount(best.origin).tolist() == [1, 3]
    draws = SequenceSampler(best, 4).draws
    rows = np.concatenate([draws.draw(500, 0, step) for step in range(10)])
    assert (rows < 12).mean() == pytest.approx(0.25, abs=0.03)


def test_other_spaces_are_one_line_with_both_names_and_both_spaces(two, tmp_path, capsys):
    write_hdf5(dataclasses.replace(toy_episodes(3, discrete=True), env_id=None), "discrete.hdf5")
    assert train.main(["--dataset", "good.hdf5", "discrete.hdf5", *FAST, "--steps", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "good.hdf5 takes actions of 1 numbers from [-2.] to [2.], discrete.hdf5 takes actions of Discrete(3)" in line

    write_hdf5(record("grid"), "grid.hdf5")
    with pytest.raises(DatasetError, match=r"good.hdf5 observes 2 numbers, grid.hdf5 observes images of 5 × 4 × 3 byt"):
        load_episodes(["good.hdf5", "grid.hdf5"])
    box = toy_episodes(3)
    wider = dataclasses.replace(box, action_space=gym.spaces.Box(-3, 2, (1,), np.float32))
    with pytest.raises(DatasetError, match=r"a takes actions of .*\[-2.\].*, b takes actions of .*\[-3.\]"):
        join([box, wider], ["a", "b"])


def test_a_dataset_may_be_a_path(two):
    assert load_episodes(Path("good.hdf5")).n_steps == load_episodes("good.hdf5").n_steps
    paths = load_episodes([Path(source) for source in two], weights=[1, 3])
    assert (paths.name, paths.remarks) == (load_episodes(two).name, load_episodes(two, weights=[1, 3]).remarks)


def test_what_is_no_list_of_datasets_is_refused(two, capsys):
    with pytest.raises(DatasetError, match="an empty list names no dataset; a source is minari:ID"):
        load_episodes([])
    Path("link.hdf5").symlink_to(two[0])
    for same in (two[0], f"./{two[0]}", str(Path(two[0]).resolve()), "link.hdf5"):
        with pytest.raises(DatasetError, match="a dataset is there twice"):
            load_episodes([two[0], same])
        assert inspect.main([two[0], same]) == 2
        assert "a dataset is there twice" in capsys.readouterr().err
    for single in (two[0], two[:1]):
        with pytest.raises(DatasetError, match=r"weights \[5, -3\]: 1 dataset needs 1 number above 0"):
            load_episodes(single, weights=[5, -3])
        assert load_episodes(single, weights=[2]).odds is None
    for weights in ([1.0], [1.0, 0.0], [1.0, float("inf")]):
        with pytest.raises(DatasetError, match="2 datasets need 2 numbers above 0"):
            load_episodes(two, weights=weights)
    for flags in (["--dataset", *two, "--dataset_weights", "1"], ["--dataset_weights", "2"], ["--dataset", "[]"]):
        with pytest.raises(SystemExit) as stop:
            train.main([*flags, *FAST])
        assert stop.value.code == 2
    with pytest.raises(DatasetError, match=r"nothing\.hdf5: no such file"):
        load_episodes([two[0], "nothing.hdf5"])


def test_the_doctor_says_what_each_brings(two, capsys):
    assert inspect.main(two) == 0
    lines = capsys.readouterr().out.splitlines()
    good = load_episodes(two[0]).returns
    expected = f"good.hdf5: 5 episodes, 60 steps, 25% of all steps; return {good.mean():.4g} on average, "
    assert lines[0] == expected + f"{good.max():.4g} at best"
    assert "episodes       20 (0 terminated, 20 truncated, 0 unfinished)" in "\n".join(lines)


def test_other_environments_are_told_in_one_line(two, tmp_path, capsys):
    elsewhere = dataclasses.replace(toy_episodes(3), env_id="ToyBox-v0", env_kwargs={"max_episode_steps": 50})
    write_hdf5(elsewhere, "elsewhere.hdf5")
    flags = ["--dataset", "good.hdf5", "elsewhere.hdf5", *FAST, "--steps", "1", "--run_dir", "run"]
    assert train.main(flags) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "different environments" in line]
    places = "good.hdf5 in ToyBox-v0, elsewhere.hdf5 in ToyBox-v0 (max_episode_steps 50)"
    assert told == [f"recorded in different environments: {places}; the first one counts"]


@pytest.mark.parametrize("env", [None, "ToyBox-v0"])
def test_a_file_that_names_no_environment_leaves_the_score_of_the_first_one(env):
    scored = toy_episodes(3)
    other = dataclasses.replace(scored, env_id=env, reference_returns=None, reference_name=None)
    kept = (
        (None, None) if env else (scored.reference_returns, scored.reference_name)
    )  # one that is scored otherwise takes it away
    joined = join([scored, other, scored], ["a", "b", "c"])
    assert (joined.reference_returns, joined.reference_name) == kept
    assert join([other, scored], ["b", "a"]).reference_returns is None  # the first one counts


def test_a_run_of_two_datasets_goes_on_and_is_evaluated(two, tmp_path, capsys):
    flags = ["--dataset", *two, "--dataset_weights", "1", "3", *FAST, "--schedule", "constant"]
    assert train.main([*flags, "--steps", "6", "--run_dir", "whole"]) == 0
    printed = capsys.readouterr().out
    assert "good.hdf5: 5 episodes, 60 steps, 25% of what is drawn" in printed
    assert "worse, of old.hdf5: 15 episodes, 180 steps, 75% of what is drawn" in printed
    config = load_saved(tmp_path / "whole" / "config.yaml", schemas(), "test")
    assert (config.dataset, config.dataset_weights) == (two, [1.0, 3.0])

    # A run that stopped half-way ends with the same weights.
    assert train.main([*flags, "--steps", "3", "--run_dir", "again"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--resume", "true", "--run_dir", "again", "--steps", "6", "--dataset_weights", "1", "1"])
    assert "dataset_weights of a run that goes on cannot be changed from [1.0, 3.0] to" in capsys.readouterr().err
    assert train.main(["--resume", "true", "--run_dir", "again", "--steps", "6"]) == 0
    whole = DecisionAgent.load("whole/checkpoints/step_00000006", device="cpu")
    again = DecisionAgent.load("again/checkpoints/step_00000006", device="cpu")
    for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert evaluate.main(["whole", "--episodes", "2"]) == 0
    assert json.loads((tmp_path / "whole/evaluation.json").read_text())["dataset"] == "good+worse, of old"

    # Other data, and the same in another order, are refused.
    capsys.readouterr()
    why = "is not what this run has learned from"
    for sources, expected in ((two[::-1], why), (two[:1], "weights [1.0, 3.0]: 1 dataset needs 1 number above 0")):
        assert train.main(["--resume", "true", "--run_dir", "whole", "--steps", "8", "--dataset", *sources]) == 2
        assert expected in capsys.readouterr().err


def test_a_single_dataset_stays_a_text():
    for words in (["my, data.hdf5"], ["minari:a/b-v0"]):
        assert load_config(["--dataset", *words], schemas()).dataset == words[0]
    assert load_config(["--dataset", "[a.hdf5]"], schemas()).dataset == "a.hdf5"
    assert _in_words("a.hdf5") == "a.hdf5"
    assert _in_words(["a.hdf5", "b.hdf5"]) == "a.hdf5 and b.hdf5"
