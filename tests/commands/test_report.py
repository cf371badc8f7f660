"""unroll compare --from: what a report says of run folders, and in which forms."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fake_runs import DECISION, PPO, fake_grid, fake_run
from unroll.agents.common import run_folder
from unroll.agents.common.run_folder import run_lock
from unroll.agents.evaluation.video import make_gif
from unroll.commands import compare
from unroll.comparison import publish
from unroll.comparison.experiments import group
from unroll.comparison.markdown import ranking
from unroll.comparison.runs import find_runs, read_run
from unroll.policies.backbones import BACKBONES

SCORES = {"mingru": [9.0, 8, 9, 8.5, 9], "gru": [5.0, 6, 5, 7, 5], "transformer": [8.9, 8, 9.2, 8.6, 9.1]}

BAND = [f"interval_TMaze10-v0/{name}" for name in ("low", "mean", "high")]


@pytest.fixture
def _no_pictures(monkeypatch):
    """Draw nothing, which takes most of the time of a report."""
    monkeypatch.setattr(publish, "draw", lambda *_: ())
    monkeypatch.setattr(publish, "draw_sheet", lambda *_: Figure())


without_pictures = pytest.mark.usefixtures("_no_pictures")


def report_of(top, *arguments):
    assert compare.main(["--from", str(top), *arguments]) == 0
    return json.loads((top / "comparison.json").read_text())


def text_of(top):
    report_of(top)
    return (top / "comparison.md").read_text()


def log_lines(run, *lines):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def error_of(capsys, *arguments):
    """The one line that a mistake gets."""
    try:
        code = compare.main([str(word) for word in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("unroll compare: ")
    return line


def test_the_report_has_scores_intervals_costs_and_says_who_leads(tmp_path, capsys):
    report = report_of(fake_grid(tmp_path, SCORES), "--reference", "gru")
    rows = report["experiments"]["TMaze10-v0"]["backbones"]
    assert list(rows) == ["transformer", "mingru", "gru"]  # by interquartile mean
    assert rows["mingru"]["scores"] == [90, 80, 90, 85, 90]
    assert rows["mingru"]["iqm"] == pytest.approx((85 + 90 + 90) / 3)
    assert rows["mingru"]["probability_of_improvement"] == 1
    assert rows["mingru"]["paired_difference"] == pytest.approx(
        np.mean(np.subtract(SCORES["mingru"], SCORES["gru"])) * 10
    )
    assert rows["mingru"]["return_without_memory"] == pytest.approx(np.mean(SCORES["mingru"]) / 2)
    assert rows["mingru"]["step_latency_us"] == 102
    assert rows["mingru"]["train_tokens_per_s"] == 506
    assert rows["mingru"]["evaluation_episodes"] == 5 * 2 * (
        9 * 20 + 2
    )  # seeds, with and without memory, evaluations while it learned and the last one
    assert "probability_of_improvement" not in rows["gru"]

    printed = capsys.readouterr().out
    assert "**transformer** leads" in printed
    assert "not distinguished from it: mingru\n" in printed
    text = (tmp_path / "comparison.md").read_text()
    for words in (
        "95% intervals",
        "toy",
        "seeds 0 to 4",
        "last checkpoint",
        "a machine",
        "how they were chosen was not",
    ):
        assert words in text
    assert "differ beside" not in text
    for picture in re.findall(r"\]\((figures/.+?)\)", text):
        with Image.open(tmp_path / picture) as image:
            assert image.width == image.height
            assert np.asarray(image).std() > 10
    with (tmp_path / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["backbone"] for line in lines] == list(rows)
    assert float(lines[1]["iqm_interval_low"]) == rows["mingru"]["iqm_interval"][0]


@without_pictures
def test_fewer_than_three_seeds_get_no_interval_and_no_ranking(tmp_path, capsys):
    report = report_of(fake_grid(tmp_path, {"mingru": [1.0, 2], "gru": [3.0, 4]}))
    assert report["experiments"]["TMaze10-v0"]["backbones"]["gru"]["iqm_interval"] is None
    assert "fewer than 3 seeds that is no ranking" in capsys.readouterr().out
    text = (tmp_path / "comparison.md").read_text()
    assert "No interval is given" in text
    assert "In brackets" not in text


@without_pictures
def test_brackets_are_explained_where_some_have_too_few_seeds_for_them(tmp_path):
    report_of(fake_grid(tmp_path, {"mingru": [1.0, 2, 3], "gru": [3.0, 4]}))
    text = (tmp_path / "comparison.md").read_text()
    assert "In brackets: 95% intervals, percentiles of a stratified bootstrap over seeds. No interval is given" in text


@without_pictures
def test_unequal_runs_are_named(tmp_path, capsys):
    fake_grid(tmp_path, {"mingru": [1.0, 2, 3]})
    fake_run(
        tmp_path / "other", "gru", 0, 3.0, ["--agent", "ppo", "--env", "TMaze10-v0", "--steps", "2000"], seeds=[1, 2]
    )
    (report,) = report_of(tmp_path)["experiments"].values()
    assert report["differences"] == ["config: steps is 1000, 2000", "evaluation: seeds is [1, 2], [7, 8]"]
    text = (tmp_path / "comparison.md").read_text()
    for told in (text, capsys.readouterr().out, ranking({"experiments": {"TMaze10-v0": report}})):
        assert "**The runs differ beside backbone and seed**: config: steps is 1000, 2000; " in told
    assert "2 episodes." in text
    assert "the same reset seeds" not in text
    assert "which saw the same data" not in text


@without_pictures
def test_the_arguments_of_the_environment_and_cut_episodes_are_said(tmp_path):
    fake_run(tmp_path / "a", "gru", 0, 1.0, env_kwargs={"length": 30, "goal": 1})
    told = text_of(tmp_path)
    assert "played in TMaze10-v0 (length 30, goal 1)." in told
    assert "cut" not in told
    fake_run(tmp_path / "b", "gru", 1, 1.0, env_kwargs={"length": 30, "goal": 2}, max_steps=1000)
    path = tmp_path / "b" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["results"][0]["cut"] = 2
    path.write_text(json.dumps(evaluation))
    told = text_of(tmp_path)
    assert "played in TMaze10-v0 (length 30)." in told
    assert "(from 7). 2 of 8 episodes were cut after 1,000 steps." in told  # two runs, each with and without memory


@without_pictures
def test_runs_that_were_not_scored_in_equally_many_episodes_are_not_said_to_be(tmp_path):
    fake_run(tmp_path / "a", "gru", 0, 1.0)
    fake_run(tmp_path / "b", "gru", 1, 1.0)
    assert "2 episodes, the same reset seeds for every run (from 7)." in text_of(tmp_path)
    path = tmp_path / "b" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation |= {"episodes": 1, "seeds": [7]}
    for result in (*evaluation["results"], evaluation["ablation"]):
        del result["returns"][1:]
    path.write_text(json.dumps(evaluation))
    assert "the last checkpoint, not all runs in equally many episodes. " in text_of(tmp_path)


@without_pictures
def test_drawn_actions_and_a_memory_that_is_not_carried_are_said(tmp_path):
    drawn = {"actions": "actions drawn from the policy", "memory": "window"}
    fake_run(tmp_path / "a", "gru", 0, 1.0, **drawn)
    fake_run(tmp_path / "b", "gru", 1, 1.0, **drawn)
    assert "(from 7), memory: window, actions drawn from the policy. " in text_of(tmp_path)
    fake_run(tmp_path / "c", "gru", 2, 1.0)
    told = text_of(tmp_path)
    assert "(from 7). " in told
    assert 'evaluation: memory is "carried", "window"; evaluation: actions is "actions drawn from' in told


@without_pictures
def test_all_devices_are_said_where_they_are_known(tmp_path):
    fake_run(tmp_path / "a", "gru", 0, 1.0, device="cpu")
    assert "(from 7), on cpu. " in text_of(tmp_path)
    fake_run(tmp_path / "b", "gru", 1, 1.0, device="NVIDIA H100")
    assert "(from 7), on NVIDIA H100 and cpu. " in text_of(tmp_path)
    fake_run(tmp_path / "c", "gru", 2, 1.0)
    assert "(from 7). " in text_of(tmp_path)


@without_pictures
def test_all_numbers_of_threads_are_said(tmp_path):
    fake_run(tmp_path / "a", "gru", 0, 1.0, [*PPO, "--threads", "1"])
    assert "seed 0; 1 CPU thread for a run." in text_of(tmp_path)
    fake_run(tmp_path / "b", "gru", 1, 1.0, [*PPO, "--threads", "2"])
    assert "seeds 0, 1; 1 and 2 CPU threads for a run." in text_of(tmp_path)
    fake_run(tmp_path / "c", "gru", 2, 1.0)
    assert "seeds 0 to 2; 1 and 2 and all CPU threads for a run." in text_of(tmp_path)


@without_pictures
def test_rows_of_different_seeds_are_named(tmp_path, capsys):
    fake_grid(tmp_path, {"mingru": [1.0, 2, 3], "gru": [2.0, 4, 5]})
    assert "different seeds" not in text_of(tmp_path)
    shutil.rmtree(tmp_path / "maze/gru/seed1")
    capsys.readouterr()
    words = "**The rows have different seeds**: gru 0, 2; mingru 0 to 2. A paired difference rests on those that both"
    assert words in text_of(tmp_path)
    assert words in capsys.readouterr().out


def test_the_episodes_that_were_played_while_learning_are_counted_as_the_config_says(tmp_path):
    targets = [*DECISION, "--evaluation.episodes", "5"]
    fake_run(tmp_path / "run", "gru", 0, 1.0, targets, targets=(1.0, 2.0, 3.0))
    path = tmp_path / "run/metrics.jsonl"
    asked = '"eval_targets/return_mean_at_1": 0, "eval_targets/return_mean_at_2": 0, "eval/return_mean"'
    path.write_text(path.read_text().replace('"eval/return_mean"', asked))
    # Ten evaluations. The last one was made anew, with two episodes for three targets.
    assert read_run(tmp_path / "run").episodes_used == 9 * 2 * 5 + 3 * 2


def test_the_episodes_that_were_played_while_learning_are_those_that_each_evaluation_logged(tmp_path):
    run = fake_run(tmp_path / "run", "gru", 0, 1.0, [*DECISION, "--evaluation.episodes", "50"])
    counts = {100: 4.0, 200: 4.0, 300: 50.0, 400: 50.0}  # the number was changed between two of them
    log_lines(
        run, *({"step": step, "eval/return_mean": 1.0, "perf/evaluation_episodes": n} for step, n in counts.items())
    )
    assert read_run(run).episodes_used == 4 + 4 + 50 + 2


@without_pictures
def test_a_run_that_went_on_with_more_steps_has_another_schedule_and_is_named(tmp_path):
    def learned(seed, *rates):
        run = fake_run(tmp_path / f"{seed}", "gru", seed, 1.0)
        log_lines(run, *({"step": 250 * i, "train/learning_rate": rate} for i, rate in enumerate(rates)))

    learned(0, 1e-3, 7.5e-4, 5e-4)
    learned(1, 1e-3, 7.5e-4, 5e-4)
    assert "differ beside" not in text_of(tmp_path)
    learned(2, 1e-3, 5e-4, 5e-4)  # made for 500 steps at first
    told = "differ beside backbone and seed**: train/learning_rate at step 250 is 0.00075, 0.0005."
    assert told in text_of(tmp_path)


@without_pictures
def test_runs_of_one_row_whose_backbones_differ_are_named(tmp_path):
    sizes = {0: [], 1: ["--backbone.d_model", "32"], 2: ["--backbone.options.expansion", "2"]}
    for seed, words in sizes.items():
        run = fake_run(tmp_path / f"mingru{seed}", "mingru", seed, 1.0, [*PPO, *words])
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text.replace('parameters": 50.0', f'parameters": {1000.0 + seed}'))
    fake_run(tmp_path / "gru", "gru", 0, 1.0, [*PPO, "--backbone.d_model", "16"])
    (report,) = report_of(tmp_path)["experiments"].values()
    assert report["differences"] == [
        "config: backbone.d_model of mingru is 32, 64",
        "config: backbone.options.expansion of mingru is 2, null",
    ]
    assert report["backbones"]["mingru"]["d_model"] is None
    assert report["backbones"]["gru"]["d_model"] == 16
    assert "Policies of 50 to 1,002 parameters." in (tmp_path / "comparison.md").read_text()


@without_pictures
def test_backbones_of_other_widths_and_options_are_no_difference(tmp_path):
    fake_run(tmp_path / "mingru", "mingru", 0, 1.0, [*PPO, "--backbone.options.expansion", "2"])
    fake_run(tmp_path / "gru", "gru", 0, 1.0, [*PPO, "--backbone.d_model", "16"])
    (report,) = report_of(tmp_path)["experiments"].values()
    assert report["differences"] == []
    assert "Policies of 50 parameters." in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize("field", ["pretrain.updates", "env_kwargs.size"])
@without_pictures
def test_a_varied_part_of_a_field_is_no_difference_and_other_parts_are_named(tmp_path, field):
    for value in (5, 6):
        kwargs = {"size": value} if field == "env_kwargs.size" else None
        words = [*PPO, f"--{field}", str(value)]
        fake_run(tmp_path / f"gru-{field}={value}" / "seed0", "gru", 0, 1.0, words, env_kwargs=kwargs)
    (report,) = report_of(tmp_path)["experiments"].values()
    assert len(report["backbones"]) == 2
    assert report["differences"] == []

    words = [*PPO, "--pretrain.top_fraction", "0.25", "--env_kwargs.other", "2"]
    fake_run(tmp_path / "mingru", "mingru", 0, 1.0, words, env_kwargs={"other": 2})
    (report,) = report_of(tmp_path)["experiments"].values()
    assert sorted(line.partition(" is ")[0] for line in report["differences"]) == [
        "config: env_kwargs.other",
        "config: pretrain.top_fraction",
        "evaluation: env_kwargs.other",
    ]


def differences(top):
    (report,) = report_of(top)["experiments"].values()
    return report["differences"]


@without_pictures
def test_a_limit_of_steps_is_a_difference_only_where_it_differs_and_has_cut_an_episode(tmp_path):
    limits = {"gru": "33", "lstm": "33", "mingru": "50"}
    for backbone, limit in limits.items():
        fake_run(tmp_path / backbone, backbone, 0, 1.0, [*PPO, "--evaluation.max_steps", limit])
    assert differences(tmp_path) == []

    # An evaluation holds the limit where it has cut an episode.
    path = tmp_path / "gru" / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_steps": 33}))
    assert differences(tmp_path) == ["evaluation: max_steps is 33, 50"]
    shutil.rmtree(tmp_path / "mingru")
    assert differences(tmp_path) == []


VARIED = {
    "env": ("env", "TMaze10-v0", "TMaze-v0"),
    "evaluation.env": ("env", "TMaze10-v0", "TMaze-v0"),
    "evaluation.memory": ("memory", "carried", "window"),
    "evaluation.max_steps": ("max_steps", 5, 50),
    "evaluation.seed": ("seeds", [7, 8], [1, 2]),
    "reset_on_done": ("memory", "carried", "carried on"),
}


@pytest.mark.parametrize("field", VARIED)
@without_pictures
def test_what_a_varied_field_changes_of_the_evaluation_is_no_difference(tmp_path, field):
    fact, *values = VARIED[field]
    for seed, (row, value) in enumerate(zip("ab", values, strict=True)):
        fake_run(tmp_path / f"gru-{field}={row}" / "run", "gru", seed, 1.0, **{fact: value})
    assert differences(tmp_path) == []

    # Without the rows' names the same runs differ.
    for row in "ab":
        (tmp_path / f"gru-{field}={row}").rename(tmp_path / row)
    assert [line.partition(" is ")[0] for line in differences(tmp_path)] == [f"evaluation: {fact}"]


@without_pictures
def test_targets_that_are_varied_are_no_difference(tmp_path):
    for row, targets in (("a", (1.0,)), ("b", (2.0, 3.0))):
        run = tmp_path / f"gru-evaluation.targets={row}" / "seed0"
        fake_run(run, "gru", 0, 1.0, DECISION, targets=targets)
    assert differences(tmp_path) == []


@without_pictures
def test_all_environments_are_named_and_their_scales_with_them(tmp_path):
    for env in ("A-v0", "B-v0"):
        fake_run(
            tmp_path / f"gru-env={env}" / "seed0", "gru", 0, 1.0, [*PPO, "--experiment", "one"], env=env, reference=env
        )
    told = text_of(tmp_path)
    assert "played in A-v0 and B-v0." in told
    assert "the random and expert returns of A-v0 and B-v0." in told


@without_pictures
def test_a_file_that_held_other_episodes_is_no_clean_row(tmp_path, capsys):
    words = [*DECISION, "--dataset", "data.hdf5"]
    for seed, mean in enumerate((6.5, 6.5 + 1e-12, 7.25)):
        fake_run(tmp_path / str(seed), "gru", seed, 1.0, words, dataset="data", dataset_return_mean=mean)
    (report,) = report_of(tmp_path)["experiments"].values()
    assert report["differences"] == ["evaluation: dataset.return_mean is 6.5, 7.25"]
    assert "dataset.return_mean is 6.5, 7.25." in capsys.readouterr().out

    for name, mean in (("p", 6.5), ("q", 7.25)):
        run = tmp_path / "varied" / f"gru-dataset={name}" / "seed0"
        fake_run(run, "gru", 0, 1.0, [*DECISION, "--dataset", name], dataset="data", dataset_return_mean=mean)
    (report,) = report_of(tmp_path / "varied")["experiments"].values()
    assert report["differences"] == []


def test_runs_of_several_datasets_are_compared_under_the_name_that_they_had(tmp_path):
    words = [*DECISION, "--dataset", "p/a.hdf5", "q/b.hdf5"]
    fake_run(tmp_path / "gru", "gru", 0, 1.0, words, dataset="a+b")
    fake_run(tmp_path / "lstm", "lstm", 0, 1.0, words)  # an evaluation that names none
    one = [*DECISION, "--dataset", "minari:mujoco/hopper/medium-v0"]
    fake_run(tmp_path / "minari", "gru", 0, 1.0, one, dataset="mujoco/hopper/medium-v0")
    experiments = report_of(tmp_path)["experiments"]
    assert list(experiments) == ["a+b", "mujoco/hopper/medium-v0"]
    assert list(experiments["a+b"]["backbones"]) == ["gru", "lstm"]
    assert (tmp_path / "figures/mujoco/hopper/medium-v0/1_score.png").is_file()


@without_pictures
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    for name in ("p", "q"):
        words = [*DECISION, "--dataset", f"/{name}/data.hdf5"]
        fake_run(tmp_path / name, "gru", 0, 1.0, words, dataset="data")
    fake_run(tmp_path / "named", "gru", 0, 1.0, [*words, "--experiment", "mine"], dataset="data")
    assert list(report_of(tmp_path)["experiments"]) == ["mine", "p-data", "q-data"]

    # Of other seeds they are one row, which is said to be of two files.
    capsys.readouterr()
    fake_run(tmp_path / "two" / "p", "gru", 0, 1.0, [*DECISION, "--dataset", "p/data.hdf5"], dataset="data")
    fake_run(tmp_path / "two" / "q", "gru", 1, 1.0, [*DECISION, "--dataset", "q/data.hdf5"], dataset="data")
    assert list(report_of(tmp_path / "two")["experiments"]) == ["data"]
    assert 'config: dataset is "p/data.hdf5", "q/data.hdf5"' in capsys.readouterr().out


@without_pictures
def test_experiments_with_normalised_scores_are_put_together(tmp_path):
    fake_grid(tmp_path, SCORES)
    other = ["--agent", "ppo", "--env", "TMaze20-v0", "--steps", "1000"]
    fake_grid(
        tmp_path, {name: [score / 2 for score in scores] for name, scores in SCORES.items()}, "far", arguments=other
    )
    report = report_of(tmp_path)
    assert set(report["experiments"]) == {"TMaze10-v0", "TMaze20-v0"}
    assert report["overall"]["mingru"]["mean"] == pytest.approx(np.mean(SCORES["mingru"]) * 7.5)
    assert "Not in this table" not in (tmp_path / "comparison.md").read_text()
    shutil.rmtree(tmp_path / "far/gru")
    assert "gru" not in report_of(tmp_path)["overall"]
    text = (tmp_path / "comparison.md").read_text()
    assert "All experiments together" in text
    assert "Not in this table: gru, which has no run in TMaze20-v0." in text


@without_pictures
def test_returns_are_compared_where_there_is_no_scale(tmp_path):
    report = report_of(fake_grid(tmp_path, SCORES, normalized=False))
    (experiment,) = report["experiments"].values()
    assert experiment["score"] == "return_mean"
    assert experiment["backbones"]["gru"]["scores"] == SCORES["gru"]


@without_pictures
def test_the_return_without_memory_is_given_where_all_seeds_of_a_row_have_one(tmp_path):
    fake_grid(tmp_path, {"gru": [1.0, 2], "mingru": [4.0, 6]})
    path = tmp_path / "maze/gru/seed1/evaluation.json"
    evaluation = json.loads(path.read_text())
    del evaluation["ablation"]
    path.write_text(json.dumps(evaluation))
    (experiment,) = report_of(tmp_path)["experiments"].values()
    rows = experiment["backbones"]
    assert rows["gru"]["return_without_memory"] is None
    assert rows["mingru"]["return_without_memory"] == 2.5


def test_what_decision_agents_were_asked_for_is_shown_with_what_they_got(tmp_path):
    report = report_of(fake_grid(tmp_path, SCORES, arguments=DECISION, targets=(4.0, 8.0)))
    (experiment,) = report["experiments"].values()
    gru = experiment["backbones"]["gru"]
    assert gru["calibration"] == [[4.0, SCORES["gru"]], [8.0, [score + 1 for score in SCORES["gru"]]]]
    assert gru["scores"] == [10 * (score + 1) for score in SCORES["gru"]]  # at the highest target
    assert (tmp_path / "figures" / experiment["dataset"].rpartition(":")[2] / "4_asked.png").is_file()


@without_pictures
def test_what_rows_of_different_targets_got_stands_under_the_target(tmp_path):
    fake_grid(tmp_path, {"mingru": [1.0, 2, 3]}, arguments=DECISION, targets=(4.0, 8.0))
    fake_grid(tmp_path, {"gru": [5.0, 6, 7]}, arguments=DECISION, targets=(8.0, 9.0))
    fake_grid(tmp_path, {"lstm": [5.0, 6, 7]}, arguments=DECISION)
    table = text_of(tmp_path).partition("by the return that was asked for:\n\n")[2].splitlines()[:5]
    assert table[0] == "| backbone | 4 | 8 | 9 |"
    assert sorted(table[2:4]) == ["| gru | – | 6.00 | 7.00 |", "| mingru | 2.00 | 3.00 | – |"]
    assert table[4] == ""  # a row that was asked for nothing has nothing to say


def test_tensorboard_shows_means_under_the_tags_of_the_runs(tmp_path, capsys):
    fake_grid(tmp_path, SCORES)
    frames = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "maze" / "mingru" / "seed0" / "evaluation.gif").write_bytes(make_gif(list(frames), fps=20))
    report_of(tmp_path)
    folder = tmp_path / "compare" / "TMaze10-v0"
    means = EventAccumulator(str(folder / "mingru"))
    means.Reload()
    points = means.Scalars("eval/normalized_score")
    assert [point.step for point in points] == list(range(100, 1001, 100))
    assert {point.value for point in means.Scalars("perf/step_latency_us")} == {102}
    assert points[-1].value == pytest.approx(10 * np.mean(SCORES["mingru"]))
    for tag in ("perf/parameters", "perf/train_tokens_per_s", *BAND):
        assert means.Scalars(tag)
    assert means.Scalars(BAND[0])[-1].value < points[-1].value < means.Scalars(BAND[2])[-1].value
    assert "_hparams_/session_start_info" in means.summary_metadata
    assert means.Tags()["images"] == ["playing/episode"]
    pictures = EventAccumulator(str(folder))
    pictures.Reload()
    assert "TMaze10-v0/1_score" in pictures.Tags()["images"]
    ranking = EventAccumulator(str(tmp_path / "compare"))
    ranking.Reload()
    assert "0_ranking/text_summary" in ranking.Tags()["tensors"]
    printed = capsys.readouterr().out
    link = re.search(r"http\S+", printed)[0]
    assert f"tensorboard --logdir {tmp_path / 'compare'}\n" in printed
    assert "pinnedCards" in link
    assert "eval%2Fnormalized_score" in link


@without_pictures
def test_scores_of_an_evaluation_of_before_are_no_part_of_the_curve(tmp_path):
    run = fake_run(tmp_path / "run", "gru", 0, 1.0)
    before = [{"step": step, "eval/return_mean": 1.0, "train/loss": 1.0} for step in (100, 200)]
    log_lines(run, *before, {"step": 200, "eval/anew": 1.0}, {"step": 300, "eval/return_mean": 5.0, "train/loss": 1.0})
    found = read_run(run)
    assert [list(part) for part in found.curve("eval/return_mean")] == [[300], [5]]
    assert list(found.curve("train/loss")[0]) == [100, 200, 300]
    report_of(tmp_path)
    shown = EventAccumulator(str(tmp_path / "compare/TMaze10-v0/gru"))
    shown.Reload()
    assert "eval/return_mean" in shown.Tags()["scalars"]
    assert "eval/anew" not in shown.Tags()["scalars"]


def test_a_finished_run_that_is_scored_anew_keeps_its_curve(tmp_path):
    run = fake_run(tmp_path / "run", "gru", 0, 1.0)
    scores = [{"step": step, "eval/return_mean": 1.0, "perf/evaluation_episodes": 6.0} for step in (100, 200, 300)]
    log_lines(run, *scores, {"step": 300, "eval/anew": 1.0})  # the new score has no line: the step has one
    found = read_run(run)
    assert list(found.curve("eval/return_mean")[0]) == [100, 200, 300]
    assert found.episodes_used == 3 * 6 + 2 * 2


def test_what_is_no_config_of_a_run_hides_no_run(tmp_path):
    fake_run(tmp_path / "runs/one", "gru", 0, 1.0)
    (fake_run(tmp_path / "runs/two", "gru", 1, 1.0) / "evaluation.json").unlink()
    (tmp_path / "config.yaml").write_text("grid: mine\n")
    left_out = {}
    assert len(find_runs([tmp_path], left_out)) == 1
    assert list(left_out) == [str(tmp_path / "runs/two")]


def test_a_run_whose_lock_may_not_be_read_is_not_said_to_be_trained(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    (tmp_path / run_folder.LOCK).touch()
    monkeypatch.setattr(run_folder, "_lock", refuse)
    assert not run_folder.is_locked(tmp_path)


def test_a_curve_reaches_as_far_as_all_runs_of_its_row(tmp_path):
    for seed, steps in {0: [0, 1000, 2000], 1: [100, 200, 400, 500], 2: [50, 200, 450]}.items():
        run = fake_run(tmp_path / f"{seed}", "gru", seed, 1.0)
        log_lines(run, *({"step": step, "train/loss": step / 10} for step in steps))
    (experiment,) = group(find_runs([tmp_path]))
    steps, values = experiment.curves("gru", "train/loss")
    assert steps.tolist() == [100, 200, 400]
    np.testing.assert_allclose(values, [[10, 20, 40]] * 3)


def test_the_memory_of_a_run_is_the_most_that_one_of_its_processes_had(tmp_path):
    run = fake_run(tmp_path / "run", "gru", 0, 1.0)
    peaks = ((400, 500.0), (1000, 900.0), (1000, 200.0))  # the last one only evaluated
    log_lines(run, *({"step": step, "perf/peak_memory_mb": peak, "perf/parameters": 5.0} for step, peak in peaks))
    assert read_run(run).cost("perf/peak_memory_mb") == 900
    assert read_run(run).cost("perf/parameters") == 5


def test_a_report_can_be_made_again(tmp_path):
    fake_grid(tmp_path, SCORES)
    first = report_of(tmp_path)
    assert report_of(tmp_path) == first
    assert len(list((tmp_path / "compare").glob("events*"))) == 1


def test_runs_without_evaluations_while_learning_have_no_curve(tmp_path):
    fake_grid(tmp_path, SCORES, curve=False)
    report_of(tmp_path)
    assert not list(tmp_path.rglob("2_learning.png"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evaluation.json", '{"env": ', "evaluation.json: damaged"),
        ("evaluation.json", "[]", "evaluation.json: damaged"),
        ("evaluation.json", '{"results": []}', "not a finished run"),
        ("config.yaml", "a: [", "config.yaml: damaged"),
        ("config.yaml", "steps: 5", "no 'backbone' in its config"),
        ("config.yaml", None, "config.yaml: missing"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, capsys, name, content, words):
    fake_grid(tmp_path, {"gru": [1.0]})
    path = tmp_path / "maze" / "gru" / "seed0" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert words in error_of(capsys, "--from", tmp_path)


@without_pictures
def test_a_folder_within_another_is_read_once(tmp_path):
    fake_grid(tmp_path, {"gru": [1.0, 2.0]})
    (experiment,) = report_of(tmp_path, str(tmp_path / "maze" / "gru"))["experiments"].values()
    assert experiment["backbones"]["gru"]["seeds"] == [0, 1]


def test_two_runs_of_one_name_are_not_mixed(tmp_path, capsys):
    fake_grid(tmp_path, {"gru": [1.0]})
    fake_run(tmp_path / "again", "gru", 0, 3.0)
    line = error_of(capsys, "--from", tmp_path)
    assert str(tmp_path / "again") in line
    assert "gru, seed 0, of TMaze10-v0" in line
    assert "another --experiment" in line


def test_runs_in_a_folder_that_the_report_would_replace_are_kept(tmp_path, capsys):
    run = fake_run(tmp_path / "compare" / "gru" / "seed0", "gru", 0, 1.0)
    assert "another folder by --output" in error_of(capsys, "--from", tmp_path)
    assert (run / "evaluation.json").is_file()
    assert compare.main(["--from", str(tmp_path), "--output", str(tmp_path / "report")]) == 0


@without_pictures
def test_a_run_that_was_scored_before_its_end_is_no_finished_one(tmp_path, caplog, capsys):
    fake_grid(tmp_path, SCORES)
    run = tmp_path / "maze" / "gru" / "seed0"
    for scored, last, why in (
        (800, 800, "stopped at step 800 of 1,000"),
        (800, 1008, "scores step 800, its last is 1,0"),
    ):
        (run / f"checkpoints/step_{last:08d}").mkdir(parents=True)
        evaluation = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps(evaluation | {"steps": scored}))
        caplog.clear()
        rows = report_of(tmp_path)["experiments"]["TMaze10-v0"]["backbones"]
        assert len(rows["gru"]["scores"]) == len(rows["mingru"]["scores"]) - 1
        (record,) = caplog.records
        assert record.getMessage().startswith(f"left out: {run}: ")
        assert why in record.getMessage()
        assert why in error_of(capsys, "--from", run)

    # PPO may end a little later than the config says.
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"steps": 1008}))
    rows = report_of(tmp_path)["experiments"]["TMaze10-v0"]["backbones"]
    assert len(rows["gru"]["scores"]) == len(rows["mingru"]["scores"])


@without_pictures
def test_runs_that_failed_or_are_unfinished_are_named(tmp_path, capsys):
    fake_grid(tmp_path, {"gru": [1.0, 2, 3, 4]})
    row = tmp_path / "maze/gru"
    for seed in (0, 1):
        (row / f"seed{seed}/evaluation.json").unlink()
    (row / "seed0/wandb").mkdir()  # holds a file of this name, and no run
    shutil.copy(row / "seed0/config.yaml", row / "seed0/wandb")
    (tmp_path / "maze/lstm/seed0").mkdir(parents=True)
    (tmp_path / "maze/lstm/seed0/.lock").touch()
    with run_lock(row / "seed1"):
        lines = text_of(tmp_path).splitlines()
    told = [line for line in lines if "not compared" in line]
    assert told == [
        f"* **not compared**: {row}/seed0: has no evaluation.json: it was stopped, or has failed",
        f"* **not compared**: {row}/seed1: is being trained",
        f"* **not compared**: {tmp_path}/maze/lstm/seed0: is empty: its run failed before it began",
    ]
    assert told[0] in capsys.readouterr().out
    assert "has no evaluation.json" in error_of(capsys, "--from", row / "seed0")


def test_a_run_that_is_being_trained_is_not_said_to_be_stopped(tmp_path, capsys):
    run = fake_run(tmp_path / "run", "gru", 0, 1.0, steps=800)
    (run / "checkpoints/step_00000800").mkdir(parents=True)
    with run_lock(run):
        assert f"{run}: is being trained; its last checkpoint is of step 800 of 1,000" in error_of(
            capsys, "--from", run
        )
    assert "stopped at step 800 of 1,000" in error_of(capsys, "--from", run)


def test_mistakes_are_one_line(tmp_path, capsys):
    fake_grid(tmp_path, {"gru": [1.0]})
    assert "no finished run" in error_of(capsys, "--from", tmp_path / "nowhere")
    assert "the rows are gru" in error_of(capsys, "--from", tmp_path, "--reference", "lstm")
    assert "for training" in error_of(capsys, "--from", tmp_path, "--steps", "5")
    for words in ("--jobs 2", "--seeds 5", "--minutes=1", "--workers 1", "--video true", "--threads 1", "--vary a=1,2"):
        flag = words.split()[0].partition("=")[0]
        assert f"{flag} is for training" in error_of(capsys, "--from", tmp_path, *words.split())
    config = ["--config", "configs/ppo/tmaze.yaml"]
    assert "needed" in error_of(capsys, *config)
    assert "gru is there twice" in error_of(capsys, *config, "--backbones", "gru,gru")
    grid = [*config, "--backbones", "gru,mingru", "--output", tmp_path / "out"]
    assert "--seeds says how many" in error_of(capsys, *grid, "--seed", "3")
    assert "did you mean --seeds" in error_of(capsys, *grid, "--sedes", "3")
    assert "did you mean --learning_rate" in error_of(capsys, *grid, "--learning_rat", "3")
    assert "mingru" in error_of(capsys, *config, "--backbones", "gru,migru")
    (tmp_path / "compare.yaml").write_text("agent: ppo")
    assert "rename the file" in error_of(capsys, "--config", tmp_path / "compare.yaml", "--backbones", "gru")
    assert "nowhere.yaml" in error_of(capsys, "--config", "nowhere.yaml", "--backbones", "gru")
    assert '"seeds"' in error_of(capsys, *grid, "--seeds", "0")
    assert "cannot have 5 parameters" in error_of(capsys, *grid, "--match_parameters", "5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variants", [["mingru:conv=0"], ["mingru:signed=true", "gru", "lstm"], list("abcdefg")])
def test_no_two_of_eight_rows_have_one_colour(variants):
    figures = pytest.importorskip("unroll.comparison.figures")
    rows = dict.fromkeys(["mingru", *variants])
    found = figures.colours({"backbones": rows})
    assert found.keys() == rows.keys()
    assert len(set(found.values())) == len(rows)
    assert found["mingru"] == figures.colours({"backbones": dict.fromkeys(BACKBONES)})["mingru"]


def test_a_row_that_was_asked_for_nothing_is_not_in_the_picture_of_the_others():
    figures = pytest.importorskip("unroll.comparison.figures")
    rows = {"gru": {"calibration": []}, "mingru": {"calibration": [(4.0, [1.0, 2.0]), (8.0, [3.0, 4.0])]}}
    ax = Figure().subplots()
    figures.calibration(ax, {"backbones": rows})
    assert ax.get_legend_handles_labels()[1] == ["mingru"]


def test_two_seeds_have_no_band():
    figures = pytest.importorskip("unroll.comparison.figures")
    low, middle, high = figures.band(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert low.tolist() == middle.tolist() == high.tolist() == [2, 2]
