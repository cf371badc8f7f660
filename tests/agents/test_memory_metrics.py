"""What is logged of a memory is what its gates and its state are."""

import numpy as np
import pytest
import torch

from memory_tasks import Noise, make_ppo, rollout, vector
from unroll.agents.ppo.memory_metrics import memory_metrics
from unroll.policies.backbones import BACKBONES, make_backbone, map_state

GATES = {
    "mingru": {"keep"},
    "minlstm": {"keep"},
    "gru": {"reset", "keep"},
    "lstm": {"input", "forget", "output"},
    "sharnn": {"input", "forget", "output"},
    "transformer": set(),
    "mamba": {"keep"},
    "deltanet": {"keep", "write"},
}


def after_some_steps(backbone):
    x = torch.randn(2, 6, 16)
    return backbone(x)[1], torch.randn(2, 16)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_shows_its_gates(name):
    state, x = after_some_steps(backbone := make_backbone(name, d_model=16, n_layers=2))
    gates = backbone.gate_activations(x, state)
    assert set(gates) == GATES.get(name, set(gates))  # a new one need not be here
    for gate in gates.values():
        assert gate.shape[0] == 2
        assert gate.ndim == 2
        assert ((gate >= 0) & (gate <= 1)).all()
        assert gate.std() > 0


@pytest.mark.parametrize("name", ["mingru", "minlstm", "gru", "lstm"])
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_shown_is_the_gate_that_keeps(name, kept):
    """Forced open or shut by its bias, it is 1 or 0, and the state stays or does not."""
    backbone = make_backbone(name, d_model=16, n_layers=1)
    mixer, bias = backbone.blocks[0].mixer, 50.0 if kept else -50.0
    state, x = after_some_steps(backbone)
    with torch.no_grad():
        if name == "mingru":
            mixer.project.bias[:16] = -bias
        elif name == "minlstm":
            mixer.project.bias[:16], mixer.project.bias[16:32] = bias, -bias
        elif name == "gru":
            mixer.gru.bias_ih_l0[16:32] = bias
        else:
            mixer.lstm.bias_ih_l0[:16], mixer.lstm.bias_ih_l0[16:32] = -bias, bias
    gate = backbone.gate_activations(x, state)["forget" if name == "lstm" else "keep"]
    torch.testing.assert_close(gate, torch.full((2, 16), float(kept)))
    after = backbone.step(x, state)[1]
    before, after = (s[0][1] if name == "lstm" else s[0] for s in (state, after))
    assert torch.allclose(before, after, atol=1e-5) is kept


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_norm_and_the_saturation_are_logged(backbone):
    agent = make_ppo(vector(Noise), backbone=backbone, sequence_length=8)
    sequences, _ = rollout(agent, 1)
    metrics = memory_metrics(agent.policy, sequences)
    assert all(f"gate_{name}_saturated" in metrics for name in GATES.get(backbone, ()))
    assert all(name in agent.logger.name_to_value for name in (f"train/{key}" for key in metrics))
    rows = (~sequences.reset[:, 0]).nonzero().squeeze(1)
    total = np.zeros(len(rows))

    def add(part):
        if part.is_floating_point():
            total[:] += (part[rows].flatten(1).numpy() ** 2).sum(1)
        return part

    map_state(add, sequences.state)
    assert metrics["state_norm"] == pytest.approx(np.sqrt(total).mean(), rel=1e-5)
    assert all(0 <= value <= 1 for key, value in metrics.items() if key != "state_norm")


def test_saturation_counts_gates_that_are_stuck_at_either_end():
    agent = make_ppo(vector(Noise), backbone="mingru", sequence_length=8, n_layers=1, separate_critic=False)
    sequences, _ = rollout(agent, 1)
    project = agent.policy.encoders[0].backbone.blocks[0].mixer.project
    with torch.no_grad():
        project.weight[:16] = 0
        project.bias[:16] = torch.tensor([9.0] * 4 + [-9.0] * 4 + [0.0] * 8)
    assert memory_metrics(agent.policy, sequences)["gate_keep_saturated"] == 0.5
