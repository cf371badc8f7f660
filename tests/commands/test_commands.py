"""train.py and evaluate.py as a user runs them: what they leave behind, and one line for a mistake."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toy import TINY, toy_episodes
from unroll.agents import schemas
from unroll.agents.common.checkpoint import read_checkpoint
from unroll.agents.common.logs import RunLogger
from unroll.agents.common.run_folder import claim_folder
from unroll.agents.evaluation.video import make_gif
from unroll.commands import evaluate, train
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5

ROOT = Path(__file__).parents[2]


TINY += ["--evaluation.episodes", "3", "--device", "cpu", "--warmup_steps", "2"]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(20), tmp_path / "toy.hdf5")
    return ["--dataset", "toy.hdf5", *TINY]


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def test_a_run_leaves_its_config_metrics_checkpoints_events_and_evaluation(dataset, tmp_path, capsys):
    flags = ["--condition", "return", "--steps", "20", "--checkpoint_every", "5", "--evaluation.every", "10"]
    assert train.main([*dataset, *flags]) == 0
    run = tmp_path / "runs" / "toy" / "mingru" / "seed0"
    printed = capsys.readouterr().out
    for line in ("tensorboard --logdir runs", "unroll evaluate runs/toy/mingru/seed0", "target return"):
        assert line in printed
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "best",
        "step_00000015",
        "step_00000020",
    ]

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "train/loss" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in metrics if "eval/return_mean" in line] == [10, 20]
    assert "time/updates_per_s" in metrics[0]
    assert "perf/train_tokens_per_s" in metrics[0]

    logged, events = scalars(run)
    assert [step for step, _ in logged["train/loss"]] == [5, 10, 15, 20]
    assert {"eval/return_mean", "perf/step_latency_us", "train/grad_norm", "train/learning_rate"} <= set(logged)
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/experiment" in events.summary_metadata  # in the run's own file

    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {"env", "versions", "episodes", "seeds", "results", "device"} <= set(evaluation)
    assert len(evaluation["results"]) == 3
    for result in evaluation["results"]:
        assert len(result["returns"]) == 3
        assert {"target_return", "return_mean", "return_interval", "normalized_score"} <= set(result)
    assert evaluation["seeds"] == [1_000_000, 1_000_001, 1_000_002]


def test_the_saved_config_repeats_the_run_bit_for_bit(dataset, tmp_path):
    assert train.main([*dataset, "--steps", "8", "--run_dir", "one"]) == 0
    assert train.main(["--config", "one/config.yaml", "--run_dir", "two"]) == 0
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "step_00000008") for name in ("one", "two"))
    assert all((one[0][name] == two[0][name]).all() for name in one[0])
    results = [json.loads((tmp_path / name / "evaluation.json").read_text())["results"] for name in ("one", "two")]
    assert results[0] == results[1]


def test_a_run_is_never_overwritten(dataset, tmp_path, capsys):
    for expected in ("seed0", "seed0-2", "seed0-3"):
        assert train.main([*dataset, "--steps", "2"]) == 0
        assert (tmp_path / "runs/toy/mingru" / expected / "evaluation.json").exists()
    assert train.main([*dataset, "--steps", "2", "--run_dir", "runs/toy/mingru/seed0"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_two_runs_that_start_together_get_folders_of_their_own(dataset, tmp_path):
    config = load_config(dataset, schemas())
    assert [claim_folder(config, "toy").name for _ in range(3)] == ["seed0", "seed0-2", "seed0-3"]


def test_a_run_that_goes_on_keeps_its_config(dataset, tmp_path, capsys):
    assert train.main([*dataset, "--steps", "4", "--run_dir", "run"]) == 0
    capsys.readouterr()
    for change in (["--learning_rate", "0.5"], ["--backbone.name", "gru"], ["--context", "5"]):
        with pytest.raises(SystemExit):
            train.main(["--resume", "true", "--run_dir", "run", *change])
        assert "cannot be changed" in capsys.readouterr().err
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0  # finished: nothing is left to do
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "6"]) == 0
    assert load_config(["--config", "run/config.yaml"], schemas()) == load_config([*dataset, "--steps", "6"], schemas())
    assert (tmp_path / "run" / "checkpoints" / "step_00000006").is_dir()


def test_a_run_that_crashed_before_its_first_checkpoint_can_go_on(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as crash:
        crash.setattr(
            "unroll.agents.decision.agent.DecisionAgent.learn",
            lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")),
        )
        assert train.main([*dataset, "--steps", "4", "--run_dir", "run"]) == 2
    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_ctrl_c_outside_of_learning_is_one_line(dataset, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("unroll.agents.evaluation.scoring.evaluate", interrupt)
    assert train.main([*dataset, "--steps", "2"]) == 130
    assert capsys.readouterr().err == "unroll train: interrupted\n"


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(dataset, tmp_path, capsys):
    arguments = ["--steps", "40", "--learning_rate", "1e30", "--log_every", "40", "--checkpoint_every", "1"]
    assert train.main([*dataset, *arguments, "--run_dir", "run"]) == 2
    assert "at update 2, learning rate 1e+30" in capsys.readouterr().err
    for path in (tmp_path / "run" / "checkpoints").glob("step_*"):
        assert all(
            np.isfinite(value.numpy()).all() for name, value in read_checkpoint(path)[0].items() if "policy" in name
        )


def test_evaluate_plays_a_run_again_with_the_same_returns(dataset, tmp_path, capsys):
    assert train.main([*dataset, "--condition", "best", "--steps", "5", "--run_dir", "run"]) == 0
    first = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluate.main(["run"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"] == first["results"]
    options = ["--targets", "3", "-4.5", "--episodes", "2", "--memory", "window", "--output", "again.json"]
    assert evaluate.main(["run/checkpoints/step_00000005", *options]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert [result["target_return"] for result in again["results"]] == [3, -4.5]
    assert (again["episodes"], again["memory"]) == (2, "window")
    assert (tmp_path / "run" / "evaluation.json").exists()

    shutil.copytree("run/checkpoints/step_00000005", "alone/checkpoint")  # a checkpoint by itself keeps to itself
    assert evaluate.main(["alone/checkpoint"]) == 0
    assert (tmp_path / "alone/checkpoint/evaluation.json").exists()
    assert evaluate.main(["alone/checkpoint"]) == 0
    assert evaluate.main(["run", "--env", "CartPole-v1"]) == 2
    for wrong in (
        ["--targets", "nan"],
        ["--seed", "-1"],
        ["--episodes", "0"],
        ["--output", "x.gif"],
        ["--output", "nowhere/x.json"],
    ):
        with pytest.raises(SystemExit):
            evaluate.main(["run", *wrong])
    assert len(capsys.readouterr().err.strip().splitlines()) == 6


def test_a_score_that_cannot_be_written_is_shown(dataset, capsys):
    assert train.main([*dataset, "--steps", "2", "--evaluation.episodes", "0", "--run_dir", "run"]) == 0
    Path("run/evaluation.json").mkdir()
    capsys.readouterr()
    assert evaluate.main(["run", "--episodes", "2"]) == 2
    output, error = capsys.readouterr()
    assert "ToyBox-v0: 2 episodes" in output
    (line,) = error.splitlines()
    assert "run/evaluation.json: cannot be written (Is a directory); --output FILE.json writes elsewhere" in line
    assert evaluate.main(["run", "--episodes", "2", "--output", "elsewhere.json"]) == 0
    assert Path("elsewhere.json").is_file()


def test_a_score_in_another_environment_than_the_datasets_is_not_the_runs_own(dataset, tmp_path):
    assert train.main([*dataset, "--steps", "2", "--run_dir", "run"]) == 0
    own = (tmp_path / "run/evaluation.json").read_bytes()
    assert evaluate.main(["run", "--env", "ToyBox-v0", "--env_kwargs", "{max_episode_steps: 3}"]) == 0
    assert (tmp_path / "run/evaluation.json").read_bytes() == own
    other = json.loads((tmp_path / "run/evaluation_other_task.json").read_text())
    assert other["env_kwargs"] == {"max_episode_steps": 3}
    assert evaluate.main(["run", "--env", "ToyBox-v0", "--env_kwargs", "{}", "--episodes", "1"]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["episodes"] == 1

    # a dataset that names no environment, or one that is not to be had: whichever is given is the run's own
    for run, named in (("nowhere", None), ("elsewhere", "NotHere-v0")):
        write_hdf5(dataclasses.replace(toy_episodes(20), env_id=named), "toy.hdf5")
        assert train.main([*dataset, "--steps", "2", "--run_dir", run]) == 0
        assert evaluate.main([run, "--env", "ToyBox-v0"]) == 0
        assert (tmp_path / run / "evaluation.json").is_file()


def test_a_sigterm_leaves_a_run_that_resumes_to_the_same_weights(dataset, tmp_path):
    write_hdf5(dataclasses.replace(toy_episodes(20), env_id=None), "toy.hdf5")  # another process knows no ToyBox-v0
    arguments = [*dataset, "--steps", "400", "--log_every", "10"]
    assert train.main([*arguments, "--run_dir", "whole"]) == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--run_dir", "cut", "--threads", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "python train.py --resume true --run_dir cut" in " ".join(output.split())
    assert train.main(["--resume", "true", "--run_dir", "cut", "--threads", "1"]) == 0
    whole, cut = (read_checkpoint(tmp_path / name / "checkpoints" / "step_00000400")[0] for name in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    undisturbed = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [
        [(line["step"], line["train/loss"]) for line in log if "train/loss" in line] for log in (lines, undisturbed)
    ]
    assert losses[0] == losses[1]  # also of the updates before the stop that had not been logged
    assert [step for step, _ in scalars(tmp_path / "cut")[0]["train/loss"]] == sorted({s for s in steps if s})


def _replace(file, name, values):
    del file[name]
    file[name] = values


SPOILED = {
    "NaN in observations": (lambda f: _replace(f, "observations", np.full((240, 2), np.nan)), "observations"),
    "actions one short": (lambda f: _replace(f, "actions", f["actions"][:-1]), "239"),
    "wrong action width": (lambda f: _replace(f, "actions", np.zeros((240, 5))), "action"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_dataset_that_cannot_be_trained_on_is_one_line(dataset, kind, tmp_path, capsys):
    change, expected = SPOILED[kind]
    with h5py.File(tmp_path / "toy.hdf5", "a") as file:
        change(file)
    assert_one_line([*dataset, "--steps", "2"], expected, capsys)


BROKEN = {
    "an HTML page": b"<!DOCTYPE html><html><body>404</body></html>",
    "an empty file": b"",
}


@pytest.mark.parametrize("kind", [*BROKEN, "a truncated file"])
def test_a_file_that_is_no_dataset_is_one_line(dataset, kind, tmp_path, capsys):
    path = tmp_path / "toy.hdf5"
    path.write_bytes(BROKEN.get(kind, path.read_bytes()[:3000]))
    assert_one_line([*dataset, "--steps", "2"], "toy.hdf5", capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "nowhere.hdf5"], "nowhere.hdf5"),
        (["--dataset", "d4rl:hopper-medum-v2"], "hopper-medium-v2"),
        (["--dataset", "hf:something"], "hf:something"),
        (["--backbone.name", "mingruu"], "did you mean mingru?"),
        (["--backbone.options.expansoin", "2"], "did you mean expansion?"),
        (["--backbone.options.d_model", "2"], "has no option 'd_model'"),
        (["--backbone.match_parameters", "-1"], "match_parameters"),
        (["--evaluation.env", "Hoper-v5"], "did you mean Hopper-v"),
        (["--evaluation.env", "os:system"], "os registers no system"),
        (["--evaluation.env", "CartPole-v1"], "CartPole-v1 observes (4,), the policy was trained on 2 numbers"),
        (["--backbone.options.expansion", "-1"], "leaves no channel"),
        (["--backbone.name", "transformer", "--backbone.options.n_heads", "0"], "n_heads must be at least 1"),
        (["--evaluation.targets", "[.nan]"], "finite"),
        (["--evaluation.targets", "[]"], "one finite number or more"),
        (["--run_dir", "toy.hdf5"], "toy.hdf5"),
        (["--resume", "true", "--run_dir", "nowhere"], "no such run folder"),
        (["--resume", "true"], "needs --run_dir"),
        (["--run_dir", ""], "run_dir is empty"),
        (["--experiment", "../x"], "--run_dir takes any folder"),
    ],
)
def test_a_wrong_argument_is_one_line(dataset, arguments, expected, capsys):
    assert_one_line([*dataset, "--steps", "2", *arguments], expected, capsys)


def assert_one_line(arguments, expected, capsys):
    """Exit code 2, one line, and no run folder."""
    try:
        code = train.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert expected in error
    assert not Path("runs").exists()


def test_a_run_or_checkpoint_that_cannot_be_read_is_one_line_for_evaluate(dataset, tmp_path, capsys):
    assert evaluate.main(["nowhere"]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert train.main([*dataset, "--steps", "2", "--run_dir", "run"]) == 0
    capsys.readouterr()
    tensors = tmp_path / "run/checkpoints/step_00000002/tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    assert evaluate.main(["run"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "tensors.safetensors" in error


def test_a_dataset_without_an_environment_is_trained_on_and_not_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hdf5(dataclasses.replace(toy_episodes(10), env_id=None), "toy.hdf5")
    assert train.main(["--dataset", "toy.hdf5", *TINY, "--steps", "3", "--run_dir", "run"]) == 0
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert evaluate.main(["run"]) == 2
    assert "--env" in capsys.readouterr().err
    assert evaluate.main(["run", "--env", "ToyBox-v0"]) == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_in_its_events_too(dataset, tmp_path):
    assert train.main([*dataset, "--steps", "10", "--run_dir", "run"]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "20"]) == 0
    logged, events = scalars(tmp_path / "run")
    assert [step for step, _ in logged["train/loss"]] == [5, 10, 15, 20]
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/experiment" in events.summary_metadata


def test_a_run_that_begins_again_hides_the_points_of_its_pretraining_too(tmp_path):
    for last in (-1, 0):
        logger = RunLogger(tmp_path)
        for step in range(-3, last + 1):
            logger.record("train/loss", 1.0 + last)
            logger.dump(step)
        logger.close()
    assert scalars(tmp_path)[0]["train/loss"] == [(step, 1.0) for step in (-3, -2, -1, 0)]


def test_a_run_whose_output_nobody_reads_any_more_goes_on_without_it(dataset, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    code = "import toy, sys; from unroll.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", *dataset, "--steps", "20", "--run_dir", "run"]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, text=True, timeout=120)
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "run" / "checkpoints" / "step_00000020").is_dir()
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_a_gif_is_logged_and_a_black_one_is_refused(tmp_path):
    frames = [np.full((20, 20, 3), 200, np.uint8) for _ in range(3)]
    with pytest.raises(ValueError, match="one colour"):
        make_gif(frames, 10)
    frames[1][5:9] = 0
    logger = RunLogger(tmp_path)
    logger.gif("eval/episode", make_gif(frames, 10), 1)
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Images("eval/episode")[0].encoded_image_string.startswith(b"GIF")
