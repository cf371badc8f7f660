"""An update: its switches change how it is computed and not what is learned, and it never waits for the device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toy import make_agent, toy_episodes
from unroll.agents import DecisionAgent
from unroll.agents.common.checkpoint import read_checkpoint, write_checkpoint
from unroll.errors import TrainingError
from unroll.policies.backbones import BACKBONES

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the tracer looks at every attribute


class NothingWaits(TorchDispatchMode):
    """Fails where a program on CUDA would wait for a number: its value, or the size of a result."""

    WAITING = (
        aten._local_scalar_dense,
        aten.equal,
        aten.is_nonzero,
        aten.masked_select,
        aten.nonzero,
        aten.repeat_interleave,
        aten._unique2,
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in self.WAITING, function
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_update_never_waits_for_the_device(backbone, optimizer, precision):
    agent = make_agent(backbone=backbone, optimizer=optimizer, precision=precision, tokens="interleaved")
    agent._checks_updates = False  # as on CUDA
    agent.update()
    with NothingWaits():
        agent.update()


def test_waiting_is_seen():
    agent = make_agent()
    agent._checks_updates = False
    agent.policy.action.register_forward_hook(lambda *_: None)
    loss = agent.loss
    agent.loss = lambda batch: loss(batch) * loss(batch).item()
    with NothingWaits(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        agent.update()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bfloat16_learns_what_float32_learns(backbone):
    episodes = toy_episodes(100)
    losses = {}
    for precision in ("float32", "bfloat16"):
        agent = make_agent(episodes, backbone=backbone, precision=precision, learning_rate=3e-3)
        agent._total_timesteps = 80
        losses[precision] = [agent.update()["train/loss"].item() for _ in range(80)]
        assert all(parameter.dtype == torch.float32 for parameter in agent.policy.parameters())
    assert losses["bfloat16"] != losses["float32"]
    first, last = (np.mean(losses["float32"][part]) for part in (slice(10), slice(-10, None)))
    assert last < 0.7 * first
    assert np.mean(losses["bfloat16"][-10:]) == pytest.approx(last, rel=0.05)


@pytest.mark.parametrize("backbone", ["mingru", "gru", "transformer"])
def test_a_run_in_bfloat16_goes_on_bit_for_bit(backbone, tmp_path):
    settings = dict(backbone=backbone, precision="bfloat16", dropout=0.2)
    whole = make_agent(**settings).learn(8)
    part = make_agent(**settings)
    part._total_timesteps = 8
    for _ in range(3):
        part.update()
    part.save(tmp_path / "agent")
    resumed = DecisionAgent.load(tmp_path / "agent", device="cpu", episodes=toy_episodes())
    resumed.learn(5, reset_num_timesteps=False)
    for ours, theirs in zip(resumed.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_observations_are_embedded_in_float32_under_autocast():
    agent = make_agent()
    agent.policy.eval()
    batch = agent.sampler.sample(4, 0, 0)
    exact = agent.policy.tokens(batch)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = agent.policy.tokens(batch)
    assert torch.equal(tokens, exact)


def test_a_checkpoint_from_before_the_switches_is_float32_and_eager(tmp_path):
    make_agent().save(tmp_path / "new")
    tensors, state = read_checkpoint(tmp_path / "new")
    del state["config"]["precision"], state["config"]["compile"]
    write_checkpoint(tmp_path / "old", tensors, state)
    agent = DecisionAgent.load(tmp_path / "old")
    assert (agent.hyperparameters.precision, agent.hyperparameters.compile) == ("float32", "none")


@quiet
def test_the_compiled_loss_is_the_eager_one(monkeypatch):
    """Traced and differentiated by the compiler, run without its C++."""
    compile_, modes = torch.compile, []

    def traced(function, mode, **options):
        modes.append(mode)
        return compile_(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    for precision in ("float32", "bfloat16"):
        eager, compiled = (
            make_agent(backbone="transformer", dropout=0.1, precision=precision, compile=mode)
            for mode in ("none", "reduce-overhead")
        )
        for _ in range(2):
            expected, metrics = eager.update(), compiled.update()
            for name, value in expected.items():
                assert metrics[name].item() == pytest.approx(value.item(), rel=1e-2), name
    assert modes == ["reduce-overhead"] * 2


@quiet
def test_the_loss_is_compiled_once(monkeypatch):
    compile_, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(
        torch, "compile", lambda function, mode, **options: compile_(function, backend=backend, **options)
    )
    torch._dynamo.reset()
    agent = make_agent(backbone="transformer", compile="default")
    agent.learn(3)
    after = len(graphs)
    agent.predict({key: value[:, 0].numpy() for key, value in agent.sampler.sample(2, 0, 0).items()} | two())
    agent.learn(3, reset_num_timesteps=False)
    assert after == len(graphs) == 1


def two():
    """Return-to-go and timestep of two environments, as ReturnToGo gives them."""
    return {"return_to_go": np.ones((2, 1), np.float32), "timestep": np.zeros((2, 1), np.int64)}


def test_an_error_of_a_later_update_is_no_error_of_the_compiler(monkeypatch):
    agent = make_agent(compile="default")
    agent._compiles_next = False

    def fail(batch):
        raise ValueError("something else")

    agent.loss = fail
    with pytest.raises(ValueError, match="something else"):
        agent.update()
    agent._compiles_next = True
    with pytest.raises(TrainingError, match=r"compile default does not work here, use none \(something else\)"):
        agent.update()


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(tmp_path):
    words = ["train.py", "--compile", "default", "--steps", "1", "--device", "cpu", "--evaluation.every", "0"]
    words += ["--backbone.name", "transformer", "--backbone.d_model", "8", "--backbone.n_layers", "1"]
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, *words, "--run_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("unroll train: compile default does not work here, use none (")
    assert "compiler" in line


@pytest.mark.parametrize("wrong", [{"precision": "bf16"}, {"compile": "yes"}, {"compile": True}])
def test_an_unknown_precision_or_mode_is_refused_where_the_agent_is_made(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} is one of .+, not {value!r}$"):
        make_agent(**wrong)
