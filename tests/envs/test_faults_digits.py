"""Returns of any size: asked for, tagged and shown with the digits that tell them apart."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toy import TINY, make_agent, toy_episodes
from unroll.agents.decision.player import default_targets
from unroll.agents.evaluation.play import summarize
from unroll.agents.evaluation.scoring import asked_beyond, headline, read_evaluation, score_table, write_evaluation
from unroll.commands import record, train
from unroll.comparison.markdown import calibration_table, number
from unroll.hub.card import score
from unroll.pictures.evaluation import draw_evaluation
from unroll.tables import exact, significant

SIZES = st.floats(1e-9, 1e9) | st.floats(-1e9, -1e-9) | st.just(0.0)


def agent_of(*quantiles):
    agent = make_agent(toy_episodes(3))
    agent.task["return_quantiles"] |= dict(zip(("0.5", "0.9", "1"), quantiles, strict=True))
    return agent


@pytest.mark.parametrize(
    ("quantiles", "targets"),
    [
        ((0.0213, 0.0371, 0.03949), [0.0213, 0.0371, 0.0395]),  # once 0.0 alone
        ((387.1158, 1242.49151, 3525.5434), [387.1, 1242.5, 3525.5]),  # as ever
        ((1.23456, 5.0, 15.26), [1.23, 5.0, 15.3]),
        ((1234567.11, 1234567.12, 1234567.13), [1234567.11, 1234567.12, 1234567.13]),
        ((0.5, 0.5, 0.50001), [0.5, 0.5, 0.50001]),
        ((-3.0, 0.0, 0.0), [-3.0, 0.0, 0.0]),
        ((1e-12, 2e-12, 3e300), [1e-12, 2e-12, 3e300]),
    ],
)
def test_default_targets_are_rounded_to_digits_that_matter(quantiles, targets):
    assert default_targets(agent_of(*quantiles)) == targets


AGENT = agent_of(0.0, 0.0, 0.0)


@given(st.tuples(SIZES, SIZES, SIZES))
def test_default_targets_are_near_the_quantiles_and_the_same_only_where_these_are(quantiles):
    AGENT.task["return_quantiles"] |= dict(zip(("0.5", "0.9", "1"), quantiles, strict=True))
    targets = default_targets(AGENT)
    assert targets == pytest.approx(list(quantiles), rel=6e-3)
    assert len(set(targets)) == len(set(quantiles))


@given(SIZES, SIZES)
def test_a_number_is_written_as_no_other_one(a, b):
    assert float(exact(a)) == a
    assert (exact(a) == exact(b)) == (a == b)


def test_numbers_stay_readable():
    assert [exact(value) for value in (3600, 3600.5, 0.039, -1000.0, 1234567, 0.0)] == [
        *("3600", "3600.5", "0.039", "-1000", "1234567", "0"),
    ]
    written = [significant(value) for value in (1234567.0, 12.34, 1.5, 0.0213, 0.00001234, 0.0, -0.5)]
    assert written == ["1234567.0", "12.3", "1.50", "0.0213", "1.23e-05", "0.0", "-0.500"]
    assert significant(0.0, scale=0.0213) == "0.0000"


def result(target, *returns):
    mean = float(np.mean(returns))
    return {
        "target_return": target,
        "returns": list(returns),
        "lengths": [10] * len(returns),
        "return_mean": mean,
        "return_interval": [min(returns), max(returns)],
        "normalized_score": None,
    }


def evaluation(*results):
    return {
        "env": "Small-v0",
        "versions": {"mujoco": "x"},
        "memory": "carried",
        "episodes": 2,
        "seeds": [0, 1],
        "reference": None,
        "dataset": "small",
        "dataset_return_mean": 0.0213,
        "step_latency_us": 1.0,
        "results": list(results),
    }


def cells(table):
    return [list(column.cells) for column in table.columns]


@pytest.mark.parametrize("target", [None, 0.5])
def test_a_single_episode_has_no_interval(target, tmp_path):
    one = result(target, 0.25) | summarize([0.25], (0.0, 1.0))
    assert (one["return_interval"], one["normalized_interval"]) == (None, None)
    of_before = one | {"return_interval": [0.25, 0.25]}
    for each in (of_before, one):
        alone = evaluation(each) | {"episodes": 1, "seeds": [3]}
        assert cells(score_table(alone))[2] == ["–"]
        assert score_table(alone).caption.startswith("of one episode there is no interval")
        assert "| 0.25 | – | 25.0 |" in score(alone)
        assert "The interval" not in score(alone)
    draw_evaluation(alone, tmp_path / "score.png")
    write_evaluation(alone, tmp_path / "score.json")
    assert read_evaluation(tmp_path / "score.json") == alone


def test_every_target_has_a_tag_of_its_own():
    targets = (1234567.0, 1234568.0, 1234569.0, 3600.0, 0.0213)
    tags = headline(evaluation(*(result(target, 1.0) for target in targets)))
    shown = [tag.rpartition("_at_")[2] for tag in tags if tag.startswith("eval_targets/")]
    assert sorted(shown) == sorted(["1234567", "1234568", "1234569", "3600", "0.0213"])
    assert tags["perf/evaluation_episodes"] == 5 * 2


def test_the_table_shows_small_returns_and_tells_large_targets_apart():
    small = score_table(evaluation(result(0.0213, 0.0123, 0.0391), result(0.5, 0.25, 0.75)))
    assert cells(small)[0] == ["0.0213", "0.5"]
    assert cells(small)[1] == ["0.0257", "0.500"]
    assert cells(small)[2] == ["0.0123 … 0.0391", "0.250 … 0.750"]
    interval = "the interval is over the episodes of this one agent, not over seeds"
    assert small.caption == f"{interval}; mean return of the dataset small: 0.0213"
    large = score_table(evaluation(*(result(1234567.0 + i, 1234567.25) for i in range(3))))
    assert cells(large)[0] == ["1234567", "1234568", "1234569"]
    assert cells(large)[1] == ["1234567.2"] * 3


def test_what_no_episode_of_the_data_shows_is_said():
    assert asked_beyond([1800.0, 2600.0, None], [1800.0, 2600.0]) is None
    assert asked_beyond([5000.0], None) is None  # an agent that knows no data
    assert asked_beyond([-90.0, -40.0, -400.0], [-200.0, -60.0]).endswith("shows how to reach -40 and -400")
    table = score_table(evaluation(result(2500.0, 1.0), result(5000.0, 1.0)) | {"learned_returns": [1800.0, 2630.4]})
    assert "episodes that return 1800.0 to 2630.4, and nothing in them shows how to reach 5000" in table.caption


def test_a_comparison_and_a_card_show_them_too():
    assert [number(value) for value in (12.34, 0.5, 0.0213, 0.0, None)] == ["12.3", "0.50", "0.0213", "0.00", "–"]
    row = {"calibration": [(1234567.0, [1000.4]), (1234568.0, [0.0213])]}
    table = calibration_table({"backbones": {"gru": row}})
    assert "| backbone | 1234567 | 1234568 |" in table
    assert "| gru | 1,000 | 0.0213 |" in table
    assert "| 1234567 | 1 |" in score(evaluation(result(1234567.0, 1.0)))


def test_a_run_on_small_returns_asks_for_them(fields, write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    n = 40 * 5
    skill = np.repeat(np.random.default_rng(0).uniform(0.1, 1, 40), 5)
    fields = {
        "observations": np.random.default_rng(1).normal(size=(n, 2)).astype(np.float32),
        "actions": np.zeros((n, 1), np.float32),
        "rewards": (0.008 * skill).astype(np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(1, n + 1) % 5 == 0,
    }
    path = str(write(fields, env="ToyBox-v0"))
    run = ["--steps", "1", "--device", "cpu", "--evaluation.episodes", "1", "--run_dir", "run"]
    assert train.main(["--dataset", path, "--condition", "return", *TINY, *run]) == 0
    results = json.loads(Path("run/evaluation.json").read_text())["results"]
    with h5py.File(path) as file:
        returns = file["rewards"][:].reshape(40, 5).sum(1)
    asked = [result["target_return"] for result in results]
    assert asked == pytest.approx(np.quantile(returns, [0.5, 0.9, 1]), rel=6e-3)

    assert record.main(["--run", "run", "--episodes", "2", "--output", "x.hdf5"]) == 0
    capsys.readouterr()
