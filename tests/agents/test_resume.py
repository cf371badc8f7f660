"""A run that was stopped, killed or moved goes on to the weights of an undisturbed one, bit for bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from ppo_runs import NORMALIZED, TINY, assert_one_line, assert_same, finish, metrics
from toy import Toy, toy_episodes
from unroll.agents.common.callbacks import StopOnSignal
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint, read_checkpoint, write_checkpoint
from unroll.agents.common.logs import read_metrics
from unroll.agents.common.run_folder import clear_leftovers
from unroll.agents.ppo.loss import PPOLoss
from unroll.commands import train
from unroll.envs.datasets.recording import write_hdf5
from unroll.policies.backbones import BACKBONES

HOPPER = ["--env", "HopperNoVel-v5", *NORMALIZED, "--schedule", "linear", "--checkpoint_every", "64"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "CartPoleNoVel-v1", "--use_sde", "false", "--previous_reward", "true"],
        [*HOPPER, "--use_sde", "true", "--sde_sample_freq", "5"],
        ["--env", "TMaze10-v0", "--backbone.name", "transformer", "--reset_on_done", "false"],
        ["--env", "RepeatFirstEasy-v0", "--normalize_observation", "true", "--log_every", "2"],
    ],
    ids=["CartPole", "Hopper", "TMaze", "whole numbers, normalised"],
)
def test_recurrent_ppo_goes_on_to_the_same_bits_and_the_same_log(arguments, capsys):
    arguments = [*TINY, *arguments, "--evaluation.every", "64", "--evaluation.episodes", "1"]
    whole = finish("whole", *arguments, "--steps", "320", "--checkpoint_every", "96")
    shutil.copytree("whole", "cut")
    shutil.rmtree(checkpoints("cut")[-1])
    assert latest_checkpoint("cut").name == "step_00000288"
    Path("cut/evaluation.json").unlink()
    capsys.readouterr()
    assert_same(whole, finish("cut", "--resume", "true"))
    assert "goes on at step 288\n" in capsys.readouterr().out
    assert metrics("cut") == metrics("whole")
    assert (
        json.loads(Path("cut/evaluation.json").read_text())["results"]
        == json.loads(Path("whole/evaluation.json").read_text())["results"]
    )


def stop_at(step, number=signal.SIGTERM):
    """A StopOnSignal.on_step that sends the signal to this process when a step is reached."""
    on_step = StopOnSignal._on_step

    def heard(self):
        if self.num_timesteps == step and self.received is None:
            os.kill(os.getpid(), number)
        return on_step(self)

    return heard


@pytest.mark.parametrize("moment", ["rollout", "update", "evaluation"])
def test_a_signal_anywhere_leaves_a_run_that_goes_on_to_the_same_bits(moment, monkeypatch, capsys):
    arguments = [*TINY, "--env", "TMaze10-v0", *NORMALIZED, "--evaluation.every", "64"]
    whole = finish("whole", *arguments, "--steps", "192")

    def send(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on after the signal") if moment == "evaluation" else None

    with monkeypatch.context() as patch:
        if moment == "rollout":
            patch.setattr(StopOnSignal, "_on_step", stop_at(110))
        elif moment == "update":
            calls = iter(range(100))
            forward = PPOLoss.forward

            def loss(*inputs, **settings):
                if next(calls) == 9:  # the second of the third update's four minibatches
                    os.kill(os.getpid(), signal.SIGTERM)
                return forward(*inputs, **settings)

            patch.setattr(PPOLoss, "forward", loss)
        else:
            patch.setattr("unroll.agents.evaluation.scoring.evaluate", send)
        assert train.main([*arguments, "--steps", "192", "--run_dir", "cut", "--threads", "1"]) == 143
    stopped = {"rollout": 96, "update": 64, "evaluation": 64}[moment]
    assert f"stopped at step {stopped}; to go on: unroll train" in capsys.readouterr().out
    assert latest_checkpoint("cut").name == f"step_{stopped:08d}"
    assert_same(whole, finish("cut", "--resume", "true"))
    assert metrics("cut") == metrics("whole")


def test_a_signal_after_the_last_step_leaves_only_what_comes_after_it_to_do(monkeypatch):
    write_hdf5(toy_episodes(20), "toy.hdf5")
    arguments = ["--dataset", "toy.hdf5", "--backbone.d_model", "8", "--steps", "6", "--evaluation.episodes", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "_on_step", stop_at(6))
        assert train.main([*arguments, "--run_dir", "cut"]) == 143
    (learned,) = [line for line in read_metrics(Path("cut")) if "perf/peak_memory_mb" in line]
    for folder, more in (("whole", arguments), ("cut", ["--resume", "true"])):
        finish(folder, *more)
        assert [line["step"] for line in read_metrics(Path(folder)) if "perf/parameters" in line] == [6]
    assert learned in read_metrics(Path("cut"))  # and not what the process had that only evaluated
    assert metrics("cut") == metrics("whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_evaluation_leaves_that_to_do(number, monkeypatch, capsys):
    def send(*_, **__):
        os.kill(os.getpid(), number)
        raise AssertionError("went on after the signal")

    arguments = [*TINY, "--env", "TMaze10-v0", "--steps", "32"]
    with monkeypatch.context() as patch:
        patch.setattr("unroll.agents.evaluation.scoring.evaluate", send)
        assert train.main([*arguments, "--run_dir", "cut"]) == 128 + number
    assert "stopped at step 32; to go on: unroll train --resume true --run_dir cut" in capsys.readouterr().out
    for folder, more in (("whole", arguments), ("cut", ["--resume", "true"])):
        finish(folder, *more)
    assert metrics("cut") == metrics("whole")


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_the_same_seed_gives_the_same_weights_and_metrics_and_so_does_the_saved_config(backbone, capsys):
    ppo = [*TINY, "--env", "CartPoleNoVel-v1", "--steps", "96", "--evaluation.episodes", "1"]
    write_hdf5(toy_episodes(20), "toy.hdf5")
    sizes = ["--backbone.d_model", "16", "--backbone.n_layers", "2", "--context", "8"]
    decision = ["--dataset", "toy.hdf5", *sizes, "--steps", "12", "--log_every", "4", "--evaluation.episodes", "1"]
    for name, arguments in (("ppo", ppo), ("decision", decision)):
        first = finish(f"{name}1", *arguments, "--backbone.name", backbone)
        for folder, again in (
            (f"{name}2", [*arguments, "--backbone.name", backbone]),
            (f"{name}3", ["--config", f"{name}1/config.yaml"]),
        ):
            assert_same(first, finish(folder, *again))
            assert metrics(folder) == metrics(f"{name}1")


class Counter(Toy):
    """Of a class that nobody knows; it can save itself. Half of its episodes succeed."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, info | {"is_success": self.np_random.random() < 0.5}

    def save_state(self):
        return {"t": self.t, "rng": self.np_random.bit_generator.state}

    def load_state(self, state):
        self.t, self.np_random.bit_generator.state = state["t"], state["rng"]


for name, cls in (("ToyUnknown-v0", Toy), ("ToySaved-v0", Counter)):
    if name not in gym.registry:
        gym.register(name, cls, kwargs={"discrete": True})


def test_environments_that_cannot_be_saved_begin_anew_and_a_line_says_so(capsys):
    for env_id, expected in (
        (
            "ToyUnknown-v0",
            "goes on at step 64; ToyUnknown-v0 cannot be saved, so every environment begins a new episode",
        ),
        ("ToySaved-v0", "goes on at step 64\n"),
    ):
        finish(env_id, *TINY, "--env", env_id, "--steps", "64")
        capsys.readouterr()
        finish(env_id, "--resume", "true", "--steps", "128")
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("of_before", [False, True])
def test_means_over_finished_episodes_go_on_where_environments_cannot_be_saved(of_before):
    def episodes():
        return read_checkpoint(latest_checkpoint("run"))[1]["rollout"]["dict"]["episodes"]["list"]

    finish("run", *TINY, "--env", "ToyUnknown-v0", "--steps", "64")
    known = episodes()
    assert known
    if of_before:  # such a checkpoint had nothing of them
        tensors, state = read_checkpoint(latest_checkpoint("run"))
        shutil.rmtree("run/checkpoints")
        write_checkpoint("run/checkpoints/step_00000064", tensors, state | {"rollout": None})
    finish("run", "--resume", "true", "--steps", "96")
    assert (episodes()[: len(known)] == known) != of_before


def test_the_share_of_episodes_that_succeeded_goes_on():
    arguments = [*TINY, "--env", "ToySaved-v0"]
    finish("whole", *arguments, "--steps", "192")
    finish("cut", *arguments, "--steps", "96")
    finish("cut", "--resume", "true", "--steps", "192")
    key = "rollout/success_rate"
    whole, cut = ([line[key] for line in read_metrics(Path(run)) if key in line] for run in ("whole", "cut"))
    assert whole == cut
    assert len(set(whole)) > 1


def _remove_one(tensors, rollout):
    rollout["environments"]["list"].pop()


def _another_width(tensors, rollout):
    tensors[rollout["observations"]["array"]] = torch.zeros(2, 3)
    rollout["observations"]["shape"] = [2, 3]


def _another_memory(tensors, rollout):
    tensors[rollout["memory"]["tuple"][0]["tuple"][0]["tuple"][-1]["tensor"]] = torch.zeros(2, 3)


def _text_for_a_number(tensors, rollout):
    rollout["environments"]["list"][0]["dict"]["env"]["list"][-1]["dict"]["values"]["dict"]["_x"] = "far"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_remove_one, "1 environments were saved, not 2"),
        (_another_width, "float32 (2, 3) was saved where float32 (2, 2) belongs"),
        (_another_memory, "a memory of (2, 3) was saved"),
        (_text_for_a_number, "TMaze._x cannot be far"),
    ],
)
def test_episodes_of_other_environments_are_one_line(change, expected, capsys):
    finish("run", *TINY, "--env", "TMaze10-v0", "--steps", "64")
    tensors, state = read_checkpoint(latest_checkpoint("run"))
    change(tensors, state["rollout"]["dict"])
    shutil.rmtree("run/checkpoints")
    write_checkpoint("run/checkpoints/step_00000064", tensors, state)
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "128"]) == 2
    assert_one_line(capsys, expected)


def test_a_damaged_checkpoint_is_one_line_that_says_where_the_run_can_go_on_from(capsys):
    whole = finish("run", *TINY, "--env", "TMaze10-v0", "--steps", "96", "--checkpoint_every", "32")
    shutil.copytree("run", "cut")
    path = latest_checkpoint("cut") / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 2
    assert_one_line(capsys, "without cut/checkpoints/step_00000096 the run goes on from step_00000064")
    shutil.rmtree(path.parent)
    assert_same(whole, finish("cut", "--resume", "true"))


def test_other_threads_are_told(capsys):
    finish("run", *TINY, "--env", "TMaze10-v0", "--steps", "64")
    capsys.readouterr()
    assert train.main(["--resume", "true", "--run_dir", "run", "--threads", "2", "--steps", "96"]) == 0
    torch.set_num_threads(1)
    assert "note: saved under threads 1, here 2: it goes on, but not to the same bits" in capsys.readouterr().out


def test_what_a_killed_process_was_writing_is_removed_and_what_it_replaced_comes_back(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("step_00000001", ".step_00000002.77", ".best.old", ".step_00000001.old"):
        write_checkpoint(folder / name, {"a": torch.zeros(1)}, {})
    (tmp_path / ".metrics.jsonl.77").write_text("half")
    (tmp_path / ".lock").touch()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "step_00000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints"]


def test_the_best_checkpoint_is_that_of_the_highest_evaluation(monkeypatch, capsys):
    returns = iter([1.0, 5.0, 3.0, 5.0, 4.0])
    monkeypatch.setattr("unroll.agents.evaluation.scoring.headline", lambda _: {"eval/return_mean": next(returns)})
    arguments = [*TINY, "--env", "TMaze10-v0", "--evaluation.every", "32"]
    finish("run", *arguments, "--steps", "128")
    best = Path("run/checkpoints/best")
    assert read_checkpoint(best)[1]["num_timesteps"] == 64
    finish("run", "--resume", "true", "--steps", "160")
    assert read_checkpoint(best)[1]["num_timesteps"] == 64
    assert latest_checkpoint("run").name == "step_00000160"
