"""train.py and evaluate.py on a run of RecurrentPPO."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_runs import MAZE, NORMALIZED, ROOT, TINY, agent_of, assert_one_line, saved
from unroll.agents import AGENTS, schemas
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.commands import evaluate, train
from unroll.commands import record as collect
from unroll.configs import load_config, load_saved
from unroll.configs.loading import CHECKSUM


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_leaves_its_config_metrics_checkpoints_events_and_evaluation(tmp_path, capsys):
    arguments = [*MAZE, *NORMALIZED, "--steps", "160", "--checkpoint_every", "50", "--evaluation.every", "70"]
    assert train.main(arguments) == 0
    run = tmp_path / "runs" / "TMaze10-v0" / "mingru" / "seed0"
    printed = capsys.readouterr().out
    for line in ("tensorboard --logdir runs", f"unroll evaluate {run.relative_to(tmp_path)}", "wiped every step"):
        assert line in printed
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "best",
        "step_00000128",
        "step_00000160",
    ]
    kept = load_config(["--config", str(run / "config.yaml")], schemas())
    assert kept == AGENTS["ppo"].settled(load_config(arguments, schemas()))
    assert kept.backbone.options == {"plain": True, "mlp_ratio": 0.0, "conv": 4, "signed": "some"}

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "time/fps" in line] == [32, 64, 96, 128, 160]
    updates = [line["train/n_updates"] for line in metrics if "train/loss" in line]
    assert updates == [2, 4, 6, 8, 10]  # the last one too
    evaluated = [line for line in metrics if "eval/return_mean" in line]
    assert [line["step"] for line in evaluated] == [96, 160]
    assert {"eval/return_mean_without_memory", "perf/step_latency_us", "perf/evaluation_episodes"} <= set(evaluated[-1])

    events = EventAccumulator(str(run))
    events.Reload()
    assert {"rollout/ep_rew_mean", "train/loss", "eval/return_mean_without_memory"} <= set(events.Tags()["scalars"])
    assert "_hparams_/experiment" in events.summary_metadata

    evaluation = json.loads((run / "evaluation.json").read_text())
    (result,) = evaluation["results"]
    assert (evaluation["env"], evaluation["steps"], evaluation["memory"]) == ("TMaze10-v0", 160, "carried")
    assert evaluation["device"] == "cpu"
    assert result["target_return"] is None
    assert len(result["returns"]) == len(evaluation["ablation"]["returns"]) == 3
    assert evaluation["ablation"]["return_mean"] == pytest.approx(np.mean(evaluation["ablation"]["returns"]))


def test_the_score_of_another_task_is_not_the_runs_own(tmp_path, capsys):
    task = ["--env", "TMaze-v0", "--env_kwargs", "{length: 12}", "--evaluation.max_steps", "50", "--steps", "32"]
    assert train.main([*TINY, *task, "--run_dir", "run"]) == 0
    own = (tmp_path / "run/evaluation.json").read_bytes()
    other = tmp_path / "run/evaluation_other_task.json"
    for words, said in (
        (["--env_kwargs", "{length: 2}"], {"env": "TMaze-v0", "env_kwargs": {"length": 2}}),
        (["--env", "TMaze10-v0", "--env_kwargs", "{}"], {"env": "TMaze10-v0"}),
        (["--max_steps", "5"], {"env": "TMaze-v0", "env_kwargs": {"length": 12}, "max_steps": 5}),
    ):
        capsys.readouterr()
        assert evaluate.main(["run", *words]) == 0
        assert "in another task than the run's own\nwritten to" in capsys.readouterr().out
        found = json.loads(other.read_text())
        assert {key: found[key] for key in ("env", "env_kwargs", "max_steps") if key in found} == said
        assert (tmp_path / "run/evaluation.json").read_bytes() == own
    assert evaluate.main(["run/checkpoints/best", "--max_steps", "5", "--stochastic"]) == 0
    assert (tmp_path / "run/evaluation_best_other_task_stochastic.json").is_file()

    # the same task by its name, in other episodes
    assert evaluate.main(["run", *task[:4], "--max_steps", "50", "--episodes", "2"]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["episodes"] == 2


def test_another_process_plays_a_run_again_with_the_same_returns(tmp_path, capsys):
    shown = ["--previous_action", "true", "--previous_reward", "true"]
    assert (
        train.main([*TINY, *NORMALIZED, *shown, "--env", "CartPoleNoVel-v1", "--steps", "64", "--run_dir", "run"]) == 0
    )
    first = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "evaluate.py"), "run", "--output", "again.json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["results"] == first["results"]
    assert again["ablation"] == first["ablation"]
    assert len(set(again["results"][0]["returns"] + again["ablation"]["returns"])) > 1


def test_a_sigterm_leaves_a_run_that_goes_on_where_it_was(tmp_path, capsys):
    arguments = [*TINY, *NORMALIZED, "--env", "CartPoleNoVel-v1", "--run_dir", "cut", "--evaluation.every", "0"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--steps", "10000000", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "python train.py --resume true --run_dir cut" in " ".join(output.split())
    _, state = read_checkpoint(latest_checkpoint("cut"))
    stopped = state["num_timesteps"]
    assert f"stopped at step {stopped}" in output

    assert train.main(["--resume", "true", "--run_dir", "cut", "--steps", str(stopped + 64)]) == 0
    assert f"goes on at step {stopped}\n" in capsys.readouterr().out
    _, after = read_checkpoint(latest_checkpoint("cut"))
    assert after["num_timesteps"] == stopped + 64
    assert after["n_updates"] == state["n_updates"] + 4
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 0  # nothing is left to do
    assert read_checkpoint(latest_checkpoint("cut"))[1]["num_timesteps"] == stopped + 64
    with pytest.raises(SystemExit):
        train.main(["--resume", "true", "--run_dir", "cut", "--agent", "decision"])
    with pytest.raises(SystemExit):
        train.main(["--resume", "true", "--run_dir", "cut", "--gamma", "0.5"])
    errors = capsys.readouterr().err.strip().splitlines()
    assert ["cannot be changed" in line for line in errors] == [True, True]


@pytest.mark.parametrize("flags", [["--backbone.options", "{signed: true}"], ["--backbone.match_parameters", "9000"]])
def test_the_command_that_began_a_run_goes_on_with_it(flags, capsys):
    arguments = [
        *TINY,
        "--env",
        "TMaze10-v0",
        "--steps",
        "64",
        "--evaluation.episodes",
        "0",
        "--run_dir",
        "run",
        *flags,
    ]
    assert train.main(arguments) == 0
    again = [*arguments, "--resume", "true"]
    assert train.main(again) == 0
    for change in (["--backbone.options", "{signed: false}"], ["--backbone.match_parameters", "20000"]):
        with pytest.raises(SystemExit):
            train.main([*again, *change])
        assert_one_line(capsys, "cannot be changed")


def test_a_run_of_before_goes_on_without_signed_gates_with_the_command_that_began_it(capsys):
    """Its config does not name them: there were none by default."""
    arguments = [*TINY, "--env", "TMaze10-v0", "--steps", "64", "--evaluation.episodes", "0", "--run_dir", "run"]
    options = ["--backbone.d_model", "32", "--backbone.options"]
    assert train.main([*arguments, *options, "{expansion: 1.5, signed: false}"]) == 0
    path = Path("run/config.yaml")
    text = path.read_text().partition("\n")[2]
    assert "    signed: false\n" in text
    text = text.replace("    signed: false\n", "")
    path.write_text(f"{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")

    assert train.main([*arguments, *options, "{expansion: 1.5}", "--resume", "true"]) == 0
    assert load_saved(path, schemas(), "test").backbone.options["signed"] is False
    assert "signed: false" in path.read_text()
    with pytest.raises(SystemExit):
        train.main([*arguments, *options, "{expansion: 1.5, signed: some}", "--resume", "true"])
    assert_one_line(capsys, "cannot be changed")


@pytest.mark.parametrize(
    ("env", "kwargs", "length"),
    [("TMaze-v0", {"length": 3}, 4), ("RepeatPrevious-v0", {"decks": 1, "k": 7}, 51)],
)
def test_a_tasks_own_arguments_are_given_on_the_command_line(env, kwargs, length, capsys):
    arguments = [*TINY, "--env", env, "--env_kwargs", json.dumps(kwargs), "--steps", "32", "--run_dir", "run"]
    assert train.main([*arguments, "--evaluation.ablation", "false"]) == 0
    assert evaluate.main(["run", "--output", "run/again.json"]) == 0  # it has them from the run
    capsys.readouterr()
    for name in ("evaluation.json", "again.json"):
        evaluation = json.loads(Path("run", name).read_text())
        assert evaluation["env_kwargs"] == kwargs
        assert evaluation["results"][0]["lengths"] == [length] * 3


def test_a_finished_run_is_scored_anew_where_its_score_is_that_of_an_older_checkpoint(capsys):
    assert train.main([*MAZE, "--steps", "32", "--run_dir", "run"]) == 0
    path = Path("run/evaluation.json")
    old = path.read_text()
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "64"]) == 0
    path.write_text(old)  # as if it had been stopped after its last checkpoint
    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0
    new = path.read_text()
    assert json.loads(new)["steps"] == 64
    assert train.main(["--resume", "true", "--run_dir", "run"]) == 0
    assert path.read_text() == new
    capsys.readouterr()


def test_a_wrong_argument_of_a_task_is_one_line(capsys):
    assert train.main([*TINY, "--env", "TMaze-v0", "--env_kwargs", "{lenght: 3}", "--steps", "32"]) == 2
    assert_one_line(capsys, "lenght")
    assert not Path("runs").exists()


def test_a_run_is_played_with_actions_drawn_from_its_policy(capsys):
    path = str(saved(*agent_of("--env", "TMaze10-v0"), "checkpoint"))
    found = []
    for _ in range(2):
        assert evaluate.main([path, "--stochastic", "--episodes", "20"]) == 0
        found.append(json.loads(Path("checkpoint/evaluation_stochastic.json").read_text()))
    assert found[0]["actions"] == "actions drawn from the policy"
    assert found[0]["results"] == found[1]["results"]  # the draws begin at the seed
    assert "20 episodes, actions drawn from the policy" in " ".join(capsys.readouterr().out.split())

    # The likeliest action of an untrained policy is always the same, and runs are compared by that.
    assert not Path("checkpoint/evaluation.json").exists()
    assert evaluate.main([path, "--episodes", "20"]) == 0
    likeliest = json.loads(Path("checkpoint/evaluation.json").read_text())
    assert "actions" not in likeliest
    assert likeliest["results"][0]["returns"] != found[0]["results"][0]["returns"]
    assert "drawn" not in capsys.readouterr().out


@pytest.mark.parametrize("env", ["HopperNoVel-v5", "TMaze10-v0"])
def test_a_table_of_scores_names_mujoco_where_it_is_mujoco(env, capsys):
    path = str(saved(*agent_of("--env", env), "checkpoint"))
    assert evaluate.main([path, "--episodes", "1"]) == 0
    title = capsys.readouterr().out.split(": 1 episodes")[0].strip()
    evaluation = json.loads(Path("checkpoint/evaluation.json").read_text())
    simulator = f"MuJoCo {evaluation['versions']['mujoco']}"
    assert title == (f"{env}, {simulator}" if env == "HopperNoVel-v5" else env)


def test_options_of_decision_agents_are_one_line(capsys):
    path = str(saved(*agent_of("--env", "TMaze10-v0")))
    for command, arguments in ((evaluate.main, [path]), (collect.main, ["--run", path, "--output", "x.hdf5"])):
        for flag in (["--targets", "3"], ["--memory", "window"]):
            assert command([*arguments, *flag]) == 2
            assert_one_line(capsys, f"{flag[0]} is for decision agents")
    assert evaluate.main([path, "--env", "CartPole-v1"]) == 2
    assert_one_line(capsys, "CartPole-v1 observes 4 numbers, the policy was trained on 2 numbers")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "TMaze11-v0"], "did you mean TMaze10-v0"),
        (["--batch_size", "17"], "batch_size 17"),
        (["--sequence_length", "5"], "sequence_length 5"),
        (["--use_sde", "true"], "ppo cannot learn in TMaze10-v0"),
        (["--backbone.name", "mingruu"], "did you mean mingru?"),
        (["--backbone.options.dropout", "0.5"], "dropout must be 0 in PPO"),
    ],
)
def test_a_wrong_argument_is_one_line_and_leaves_no_folder(arguments, expected, capsys):
    assert train.main([*MAZE, "--steps", "32", *arguments]) == 2
    assert_one_line(capsys, expected)
    assert not Path("runs").exists()
