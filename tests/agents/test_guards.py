"""What stops the learning: a number that is not finite, at once; memory that does not suffice, with what to halve."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_runs import MAZE, agent_of, assert_one_line
from toy import TINY, make_agent, toy_episodes
from unroll.agents import DecisionAgent, RecurrentPPO
from unroll.agents.common.checkpoint import checkpoints, read_checkpoint
from unroll.agents.common.guards import check_device, is_out_of_memory
from unroll.agents.common.machine import peak_memory_mb
from unroll.commands import train
from unroll.envs import make_vec_env
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import TrainingError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(20), tmp_path / "toy.hdf5")
    return ["--dataset", "toy.hdf5", *TINY, "--evaluation.episodes", "2", "--device", "cpu", "--run_dir", "run"]


def spoil_loss(agent, update):
    """The loss of that update is NaN, and with it every gradient."""
    loss = agent.loss
    agent.loss = lambda batch: loss(batch) * (np.nan if agent.num_timesteps + 1 == update else 1)


def spoil_gradient(agent, update):
    """The loss of that update is finite, and a gradient is not."""
    parameter = next(agent.policy.parameters())
    parameter.register_hook(lambda grad: grad * (np.inf if agent.num_timesteps + 1 == update else 1))


@pytest.mark.parametrize(
    ("spoil", "name"), [(spoil_loss, "train/loss became nan"), (spoil_gradient, "train/grad_norm became")]
)
def test_an_update_that_is_not_finite_stops_before_the_weights_move(spoil, name):
    agent = make_agent().learn(3)
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    spoil(agent, 4)
    with pytest.raises(TrainingError, match=rf"^{name}.* at update 4, learning rate 0\.0004: lower the learning rate"):
        agent.learn(50, reset_num_timesteps=False)
    assert agent.num_timesteps == 3
    assert all(torch.equal(value, before[key]) for key, value in agent.policy.state_dict().items())


def test_on_cuda_a_loss_is_looked_at_when_it_is_logged():
    agent = make_agent()
    agent._checks_updates = False  # as there
    spoil_loss(agent, 2)
    with pytest.raises(TrainingError, match="train/loss became nan at or before update 5"):
        agent.learn(10, log_interval=5)


def break_at(monkeypatch, update):
    original = DecisionAgent.update

    def broken(agent):
        if agent.num_timesteps + 1 == update:
            spoil_loss(agent, update)
        return original(agent)

    monkeypatch.setattr(DecisionAgent, "update", broken)


def test_the_message_names_the_last_good_checkpoint(dataset, monkeypatch, capsys):
    break_at(monkeypatch, 7)
    assert train.main([*dataset, "--steps", "40", "--checkpoint_every", "3"]) == 2
    assert_one_line(capsys, "lower the learning rate or max_grad_norm; run/checkpoints/step_00000006 is intact")
    assert [path.name for path in checkpoints("run")] == ["step_00000003", "step_00000006"]
    assert all(value.isfinite().all() for value in read_checkpoint(checkpoints("run")[-1])[0].values())


def test_the_message_says_that_there_is_no_checkpoint(dataset, monkeypatch, capsys):
    break_at(monkeypatch, 2)
    assert train.main([*dataset, "--steps", "40"]) == 2
    assert_one_line(capsys, "lower the learning rate or max_grad_norm; no checkpoint was written before")


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
OUT_OF_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
    "CPU": RuntimeError(CPU),
    "Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you …"),
    "NumPy": MemoryError("Unable to allocate 8.00 TiB for an array"),
}


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_memory_that_does_not_suffice_for_an_update_names_what_to_halve(kind):
    where = "GPU" if kind == "CUDA" else "CPU"
    agent = make_agent()
    agent.loss = fail(OUT_OF_MEMORY[kind])
    expected = (
        f"^out of memory on the {where} with batch_size 16 × context 6 × d_model 16 × n_layers 2: halve batch_size"
    )
    with pytest.raises(TrainingError, match=expected):
        agent.learn(3)
    agent, _ = agent_of("--env", "TMaze10-v0", "--batch_size", "16")
    expected = (
        f"^out of memory on the {where} with batch_size 16 × n_envs 2 × n_steps 16 × d_model 8 × n_layers 1: halve"
    )
    agent.policy.evaluate_sequences = fail(OUT_OF_MEMORY[kind])
    with pytest.raises(TrainingError, match=expected):
        agent.learn(64)


def test_another_error_stays_what_it_is():
    agent = make_agent()
    agent.loss = fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        agent.learn(3)
    assert not isinstance(caught.value, TrainingError)
    assert not is_out_of_memory(caught.value)


def test_memory_that_the_budget_did_not_foresee_is_one_line(monkeypatch):
    """Numbers that no machine has, past the budget that would refuse them."""
    monkeypatch.setattr("unroll.agents.decision.agent.check_budget_of", lambda *_: None)
    monkeypatch.setattr("unroll.agents.ppo.rollouts.check_budget", lambda *_: None)
    agent = make_agent()
    agent.batch_size = 2**50
    with pytest.raises(TrainingError, match=f"^out of memory on the CPU with batch_size {2**50} × context 6"):
        agent.learn(1)
    with pytest.raises(TrainingError, match=f"^out of memory on the CPU .*n_envs 1 × n_steps {2**50}"):
        RecurrentPPO("MlpPolicy", make_vec_env("TMaze10-v0"), n_steps=2**50)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "toy.hdf5", "--backbone.d_model", "65536"], "for d_model, n_layers and options"),
        ([*MAZE, "--n_envs", "4096", "--n_steps", str(2**20)], f"for a rollout of n_steps {2**20} × n_envs 4096"),
    ],
)
def test_what_is_more_than_the_machine_has_is_refused_before_it_is_taken(arguments, expected, dataset, capsys):
    assert train.main([*arguments, "--run_dir", "run"]) == 2
    assert_one_line(capsys, expected)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TrainingError, match="PyTorch finds no CUDA device here"):
        DecisionAgent(toy_episodes(4), device=device)
    with pytest.raises(TrainingError, match="PyTorch finds no CUDA device here"):
        RecurrentPPO("MlpPolicy", make_vec_env("TMaze10-v0"), device=device)


def test_a_gpu_beyond_the_last_one_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(TrainingError, match="device cuda:2: there are 2 CUDA devices, from cuda:0 on"):
        check_device("cuda:2")
    with pytest.raises(TrainingError, match="device gpu: PyTorch knows no such device"):
        check_device("gpu")


def test_products_that_pytorch_rounds_are_known_whichever_switch_was_set():
    script = """
import torch
from unroll.agents.common.machine import products_are_rounded
said = [products_are_rounded()]
for precision in ("medium", "high", "highest"):
    torch.set_float32_matmul_precision(precision)
    said.append(products_are_rounded())
torch.backends.cuda.matmul.fp32_precision = "tf32"  # from here on PyTorch's older question is an error
print(*said, products_are_rounded())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "False", "True"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says it")
def test_the_peak_of_the_memory_is_not_that_of_the_program_that_started_this_one(monkeypatch):
    resource = pytest.importorskip("resource")
    inherited = types.SimpleNamespace(ru_maxrss=10**9)
    monkeypatch.setattr(resource, "getrusage", lambda _: inherited)
    agent = types.SimpleNamespace(device=torch.device("cpu"))
    assert 50 < peak_memory_mb(agent) < 10**5
    monkeypatch.setattr(Path, "exists", lambda _: False)  # other systems say nothing else
    assert peak_memory_mb(agent) > 10**5
