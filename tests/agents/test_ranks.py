"""Several processes under torchrun learn what one learns; one that dies ends the job; any number can go on."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_runs import ROOT, TINY, agent_of, assert_one_line
from toy import toy_episodes
from unroll.agents.common.callbacks import StopOnSignal
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.common.distributed import World, world
from unroll.agents.common.logs import read_metrics
from unroll.agents.ppo.sequences import Sequences
from unroll.commands import train
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import EnvError, TrainingError

PPO = [*TINY, "--env", "TMaze10-v0", "--normalize_reward", "true", "--previous_reward", "true", "--threads", "1"]
DECISION = [
    *["--dataset", "toy.hdf5", "--backbone.d_model", "16", "--backbone.n_layers", "1", "--context", "8"],
    *["--batch_size", "8", "--dropout", "0", "--log_every", "1", "--evaluation.episodes", "1", "--device", "cpu"],
    *["--threads", "1"],
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(dataclasses.replace(toy_episodes(20), env_id=None), "toy.hdf5")  # torchrun's know no ToyBox-v0


def torchrun(n, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    command += [str(ROOT / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logged(folder):
    """Lines of the log without times, and what is of the first process alone."""
    left = ("time/", "perf/", "eval")
    lines = [{k: v for k, v in line.items() if not k.startswith(left)} for line in read_metrics(Path(folder))]
    return [line for line in lines if len(line) > 1]


def weights(folder):
    tensors, _ = read_checkpoint(latest_checkpoint(folder))
    return {name: value for name, value in tensors.items() if name.startswith(("policy", "normalizer"))}


def assert_same(one, other):
    for ours, theirs in zip(logged(one), logged(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


def test_a_decision_agent_learns_on_two_processes_what_it_learns_on_one():
    assert train.main([*DECISION, "--steps", "8", "--run_dir", "one"]) == 0
    process = torchrun(2, *DECISION, "--steps", "8", "--run_dir", "two")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("run folder") == 2  # the first alone prints and writes
    assert_same("one", "two")


def test_ppo_on_two_processes_is_stopped_by_sigterm_and_goes_on_alone_to_what_one_learns(capsys):
    process = torchrun(2, *PPO, "--steps", "1000000", "--run_dir", "two")
    wait_for(lambda: len(logged("two")) > 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "to go on: python train.py --resume true --run_dir two" in output
    steps = str(read_checkpoint(latest_checkpoint("two"))[1]["num_timesteps"] + 64)
    assert train.main(["--resume", "true", "--run_dir", "two", "--steps", steps, "--threads", "1"]) == 0
    assert "note: saved under ranks 2, here 1" in capsys.readouterr().out
    assert train.main([*PPO, "--steps", steps, "--run_dir", "one"]) == 0
    assert_same("one", "two")


def test_the_death_of_a_process_ends_the_job_with_a_line():
    process = torchrun(2, *PPO, "--steps", "1000000", "--run_dir", "run")
    wait_for(lambda: len(logged("run")) > 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "unroll train: rank 0 lost another one; --resume true goes on" in output


def test_an_environment_that_fails_in_another_process_is_told_with_its_traceback(capsys, monkeypatch):
    follower = object.__new__(train.Follower)
    error = EnvError("environment 0 (R-v0): RuntimeError: boom")
    error.details = "Traceback: all of it"
    monkeypatch.setattr(World, "rank", 1)
    with pytest.raises(EnvError, match=r"^rank 1: environment 0 \(R-v0\): RuntimeError: boom$"):
        follower.rescue(error)
    assert capsys.readouterr().err == "Traceback: all of it\n"
    assert follower.rescue(RuntimeError("lost another one")) is None


def test_a_process_that_fails_beside_others_is_not_ended_before_it_has_said_why(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(World, "size", 2)
    try:
        with pytest.raises(RuntimeError), StopOnSignal():
            raise RuntimeError("Connection closed by peer")
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun's; it would end this process
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition, process):
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_divided_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(World, "size", 2)
    for arguments, expected in (
        ([*PPO, "--n_envs", "3"], "n_envs 3"),
        ([*DECISION, "--batch_size", "5"], "batch_size 5"),
    ):
        assert train.main([*arguments, "--run_dir", "run"]) == 2
        assert_one_line(capsys, f"{expected} cannot be divided among 2 processes; a multiple of 2 can")
    assert not Path("run").exists()


def part_of(envs, parts=3, n_envs=4):
    """The sequences of some environments of 4; each holds its number among those of all."""
    numbers = torch.tensor([[float(n_envs * k + e)] for k in range(parts) for e in envs])
    fields = dict.fromkeys(("actions", "values", "log_probs", "advantages", "returns"), numbers)
    state, observations = (numbers, (numbers,)), {"one": numbers}
    return Sequences(**fields, observations=observations, reset=numbers > 0, action_masks=None, state=state)


def test_the_sequences_of_all_processes_are_those_of_one(monkeypatch):
    monkeypatch.setattr(World, "size", 2)
    first, second, whole = part_of([0, 1]), part_of([2, 3]), part_of(range(4))
    others = {torch.bool: second.reset, torch.float32: second.actions}
    monkeypatch.setattr(World, "all_rows", lambda self, rows: torch.cat([rows, others[rows.dtype]]))
    torch.testing.assert_close(dataclasses.asdict(first.of_all_ranks(2)), dataclasses.asdict(whole))


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_processes_share_the_minibatches_of_one(monkeypatch, size):
    def batches(n, r):
        monkeypatch.setattr(World, "size", n)
        monkeypatch.setattr(World, "rank", r)
        torch.manual_seed(0)
        sequences = part_of(range(4))
        return [(sequences.select(rows).advantages, weight) for rows, weight in sequences.minibatches(size)]

    alone, shares = batches(1, 0), [batches(4, r) for r in range(4)]
    assert sorted(torch.cat([batch for batch, _ in alone]).flatten().tolist()) == list(range(12))
    for (batch, weight), *parts in zip(alone, *shares, strict=True):
        assert weight == 1
        means = [float(part.mean()) * share for part, share in parts]
        assert sum(means) / 4 == pytest.approx(float(batch.mean()))
        own = torch.cat([part for part, share in parts if share])
        assert sorted(own.flatten().tolist()) == sorted(batch.flatten().tolist())
        assert max(len(part) for part, _ in parts) == -(-len(batch) // 4)  # as even as can be


def test_every_process_hears_which_episodes_succeeded_in_others(monkeypatch):
    agent, _ = agent_of("--env", "TMaze10-v0")
    agent._setup_learn(64, None)
    monkeypatch.setattr(World, "size", 2)
    monkeypatch.setattr(World, "all_of", lambda self, own: [*own, *own])
    ended = [{"episode": {"r": 1.0, "l": 3, "t": 0.1}, "is_success": True}, {"is_success": False}]
    agent._update_info_buffer([*ended, {}], np.array([True, True, False]))
    agent._tell_episodes()
    assert list(agent.ep_success_buffer) == [True, False] * 2
    assert [episode["r"] for episode in agent.ep_info_buffer] == [1.0] * 2


def test_without_torchrun_there_is_one_process_and_nothing_is_said():
    rows = torch.arange(3)
    assert (world.rank, world.size, world.share(8)) == (0, 1, slice(0, 8))
    assert world.all_rows(rows) is rows
    assert world.any(True)
    module = torch.nn.Linear(1, 1)
    assert world.parallel(module) is module
    with world.joined("cpu"):
        assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused_before_they_wait_for_each_other(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(TrainingError, match="process 1, from 0, sees 1 GPU:"),
        world.joined("auto"),
    ):
        pass
