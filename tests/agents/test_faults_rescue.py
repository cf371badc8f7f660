"""An environment that fails ends a run in one line, and nothing that was learned is lost."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fault_envs  # noqa: F401 - registers its environments
from ppo_runs import NORMALIZED, TINY, assert_one_line
from toy import TINY as DECISION
from toy import toy_episodes
from unroll.agents.common.checkpoint import checkpoints, read_checkpoint
from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.commands import train
from unroll.envs import make_vec_env
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import EnvError

RUN = ["--run_dir", "run"]
AGAIN = "to go on: unroll train --resume true --run_dir run"
NEVER = ["--evaluation.episodes", "0"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def raises(name, at, *more):
    """The arguments of a run in two environments whose ``at``-th step fails."""
    return [*TINY, "--env", name, "--env_kwargs", f"{{at: {at}}}", *more, *RUN]


@pytest.mark.parametrize("vector", ["serial", "processes"])
def test_an_exception_in_a_rollout_is_one_line_and_the_run_goes_back_to_its_beginning(vector, capsys):
    arguments = raises("FaultRaises-v0", 43, "--vector", vector, *NORMALIZED, *NEVER)
    assert train.main([*arguments, "--steps", "400"]) == 2
    expected = (
        r"environment 0 (FaultRaises-v0): ConnectionError: simulator at port 4242 does not answer (fault_envs.py, line "
    )
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error
    assert "in step 3 of episode 6 of this process, after the action " in error
    assert f"; at step 84, saved at 64; {AGAIN}; traceback: run/traceback.txt" in error
    assert [path.name for path in checkpoints("run")] == ["step_00000064"]
    traceback = Path("run/traceback.txt").read_text()
    assert 'raise ConnectionError("simulator at port 4242\\ndoes not answer")' in traceback

    # It goes on from there, and past it: the simulator counts anew.
    assert train.main(["--resume", "true", *RUN, "--steps", "128"]) == 0
    assert "goes on at step 64" in capsys.readouterr().out
    assert read_checkpoint(checkpoints("run")[-1])[1]["num_timesteps"] == 128


def test_a_run_that_goes_on_after_a_failure_is_the_one_that_never_failed(capsys):
    """Its environment can be saved, so that it goes on in the middle of its episodes."""
    for name, at in (("whole", 10**9), ("run", 43)):
        arguments = [*TINY, "--env", "FaultSavable-v0", "--env_kwargs", f"{{at: {at}}}", "--steps", "128", *NEVER]
        assert train.main([*arguments, "--run_dir", name]) == (0 if name == "whole" else 2)
    assert train.main(["--resume", "true", *RUN]) == 0
    ours, theirs = (load_file(f"{name}/checkpoints/step_00000128/tensors.safetensors") for name in ("whole", "run"))
    weights = [name for name in ours if name.startswith("policy.")]
    assert weights
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)
    capsys.readouterr()


def test_an_exception_in_the_first_rollout_saves_the_beginning(capsys):
    assert train.main([*raises("FaultRaises-v0", 3, *NEVER), "--steps", "64"]) == 2
    assert_one_line(capsys, f"at step 4, saved at 0; {AGAIN}")
    assert train.main(["--resume", "true", *RUN, "--steps", "2"]) == 2  # fails again, and is no traceback
    assert_one_line(capsys, "ConnectionError")


def test_an_exception_before_the_first_rollout_has_nothing_to_save(capsys):
    arguments = [*TINY, "--env", "FaultRaises-v0", "--env_kwargs", "{seed_at: 0}", *NEVER, *RUN, "--steps", "64"]
    assert train.main(arguments) == 2
    assert_one_line(capsys, "at step 0, before anything was learned; no checkpoint was written before; traceback: ")
    assert not checkpoints("run")


EVALUATED = ["--env", "FaultRaises-v0", "--env_kwargs", "{seed_at: 1000002}"]


def test_an_exception_in_an_evaluation_comes_after_the_save_of_its_step(capsys):
    arguments = [*TINY, *EVALUATED, "--steps", "400", "--evaluation.every", "64", *RUN]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "FaultRaises-v0: KeyError: 'scene' (fault_envs.py, line " in error
    assert "at the reset with seed 1000002 of an evaluation; at step 64, saved at 64" in error
    assert [path.name for path in checkpoints("run")] == ["step_00000064"]
    assert train.main(["--resume", "true", *RUN, *NEVER, "--steps", "96"]) == 0
    capsys.readouterr()


def test_an_exception_in_the_last_evaluation_loses_nothing(capsys):
    assert train.main([*TINY, *EVALUATED, "--steps", "64", "--evaluation.every", "0", *RUN]) == 2
    assert_one_line(capsys, f"at step 64, saved at 64; {AGAIN}")
    assert [path.name for path in checkpoints("run")] == ["step_00000064"]
    assert train.main(["--resume", "true", *RUN, "--evaluation.seed", "5"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["steps"] == 64
    capsys.readouterr()


def test_an_observation_or_a_reward_that_is_not_finite_is_a_failure_of_the_environment_too(capsys):
    arguments = [*TINY, "--env", "FaultOdd-v0", "--env_kwargs", "{reward: .nan}", "--seed", "2000000", "--steps", "64"]
    assert train.main([*arguments, *NEVER, *RUN]) == 2
    assert_one_line(
        capsys, f"the reward of environment 0 (FaultOdd-v0) is nan at step 6; at step 6, saved at 0; {AGAIN}"
    )


@pytest.mark.parametrize("every", ["3", "0"])
def test_a_decision_agents_evaluation_that_fails_loses_no_update(every, capsys):
    write_hdf5(toy_episodes(10), "toy.hdf5")
    arguments = ["--dataset", "toy.hdf5", *DECISION, "--steps", "6", "--evaluation.episodes", "2", "--device", "cpu"]
    fails = ["--evaluation.env", "FaultRaisingToy-v0", "--evaluation.every", every]
    assert train.main([*arguments, *fails, *RUN]) == 2
    step = 3 if every == "3" else 6
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "FaultRaisingToy-v0: KeyError (fault_envs.py, line " in error
    assert "in step 9 of the evaluation's episode with seed 1000000, after the action" in error
    assert f"; at update {step}, saved at {step}; {AGAIN}; traceback: run/traceback.txt" in error
    assert train.main(["--resume", "true", *RUN, "--evaluation.env", "ToyBox-v0"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["updates"] == 6
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["ppo", "decision"])
def test_an_error_of_ours_is_a_traceback_and_saved_as_well(kind, monkeypatch, capsys):
    if kind == "ppo":
        arguments = [*TINY, "--env", "FaultSimple-v0", "--steps", "400", *NEVER]
        method, owner, unit, step = RecurrentPPO.train, RecurrentPPO, "step 96", 64
    else:
        write_hdf5(toy_episodes(10), "toy.hdf5")
        arguments = ["--dataset", "toy.hdf5", *DECISION, "--steps", "6", "--device", "cpu", *NEVER]
        method, owner, unit, step = DecisionAgent.update, DecisionAgent, "update 2", 2
    calls = []

    def third(agent):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("a mistake")
        return method(agent)

    monkeypatch.setattr(owner, "train" if kind == "ppo" else "update", third)
    with pytest.raises(RuntimeError, match="a mistake"):
        train.main([*arguments, *RUN])
    assert_one_line(capsys, f"unroll train: failed at {unit}; saved at {step}; {AGAIN}")
    assert [path.name for path in checkpoints("run")] == [f"step_{step:08d}"]


def test_in_python_the_exception_of_the_environment_is_the_cause():
    env = make_vec_env("FaultRaises-v0", env_kwargs={"at": 3})
    env.reset()
    env.step([0])
    env.step([0])
    with pytest.raises(EnvError, match=r"^environment 0 \(FaultRaises-v0\): ConnectionError") as caught:
        env.step([0])
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "Traceback" in caught.value.details
