"""The benchmark of RecurrentPPO, tiny: the peers have the same network, and every table is printed and written."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import recurrent_ppo
from benchmarks.recurrent_peers import NETWORKS, Iterations, contrib, ours

SMALL = ["--hidden", "8", "--warm", "0", "--repeats", "1", "--threads", "1"]


@pytest.mark.parametrize("network", NETWORKS)
def test_with_the_same_weights_the_peers_have_the_same_values_and_probabilities(network):
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is the peer")
    sizes = dict(n_steps=4, batch_size=4)
    theirs, mine = contrib("hopper", network, 8, **sizes).policy, ours("hopper", network, 8, **sizes).policy
    with torch.no_grad():
        for encoder, name in zip(mine.encoders, ("lstm_actor", "lstm_critic"), strict=False):
            encoder.backbone.lstm.load_state_dict(getattr(theirs, name).state_dict())
    rest = {name: value for name, value in theirs.state_dict().items() if not name.startswith("lstm_")}
    assert mine.load_state_dict(rest, strict=False).unexpected_keys == []
    obs, actions, start = torch.randn(6, 11), torch.rand(6, 3), torch.tensor([1.0, 0, 0, 1, 0, 0])
    zeros = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    values, log_prob, entropy = theirs.evaluate_actions(obs, actions, RNNStates(zeros, zeros), start)
    sequence = mine.evaluate_sequences(obs[None], actions[None], mine.initial_state(1), start.bool()[None])
    torch.testing.assert_close(sequence, (values.view(1, 6), log_prob[None], entropy[None]))


def test_an_iteration_plays_a_rollout_trains_and_clocks_all_of_it():
    algorithm = ours("cartpole", "one LSTM", 8, n_steps=4, batch_size=16, sequence_length=2)
    run = Iterations(algorithm)
    before = torch.nn.utils.parameters_to_vector(algorithm.policy.parameters()).detach()
    run()
    assert algorithm.num_timesteps == 4 * 8
    assert not torch.equal(before, torch.nn.utils.parameters_to_vector(algorithm.policy.parameters()))
    assert run.episodes == [8]
    assert np.array(run.seconds).shape == (1, 3)
    assert min(run.seconds[0]) > 0


def test_peers_are_compared_at_equal_parameters_and_memory_is_what_both_keep(tmp_path, capsys):
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is the peer")
    sizes = ["--steps", "4", "--batches", "8", "--lengths", "4,2", "--rollouts", "64", "--tasks", "cartpole"]
    recurrent_ppo.main(["--tables", "peers", "memory", *SMALL, *sizes, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [row["× sb3-contrib's"] for row in rows if row["RecurrentPPO"] == "sb3-contrib's"] == [1, 1]
    for network in NETWORKS:
        assert len({row["parameters"] for row in rows if row["network"] == network}) == 1
    for row in rows:
        assert sum(value for name, value in row.items() if name.endswith("%")) == pytest.approx(100)
        assert f"| {row['network']} | {row['parameters']} |" in printed
    kept = [row["bytes of states"] for row in json.loads((tmp_path / "memory.json").read_text())["rows"]]
    one = 8 * 8 * 2 * 2 * 4  # environments, channels, h and c, actor and critic, bytes
    assert kept == [f"{64 * one:,}", f"{one:,}", f"{2 * one:,}"]


def test_the_backbones_are_timed_at_the_shortest_rollout_and_two_of_them_at_the_others(tmp_path):
    sizes = ["--backbones", "gru,transformer", "--rollouts", "4,8"]
    recurrent_ppo.main(["--tables", "backbones", *SMALL, *sizes, "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "backbones.json").read_text())["rows"]
    short, longer = ([row for row in rows if row["n_steps"] == steps] for steps in (4, 8))
    assert {row["backbone"] for row in short} == {"lstm", "mingru", "gru", "transformer"}
    assert [(row["backbone"], row["d_model"]) for row in longer] == [
        (name, d) for d in (64, 8) for name in ("lstm", "mingru")
    ]
    assert all(row["× lstm"] == 1 for row in rows if row["backbone"] == "lstm")


def test_defaults_are_compared_with_the_peers_at_one_width(tmp_path):
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is the peer")
    recurrent_ppo.main(["--tables", "defaults", *SMALL, "--tasks", "cartpole", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "defaults.json").read_text())["rows"]
    assert [row["RecurrentPPO"] for row in rows] == ["sb3-contrib's", "ours, lstm", "ours, mingru"]
    assert rows[0]["× sb3-contrib's"] == 1
    for row in rows[1:]:
        assert row["× sb3-contrib's"] == pytest.approx(row["steps/s"] / rows[0]["steps/s"])


def test_without_the_peer_the_benchmark_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(SystemExit, match="2"):
        recurrent_ppo.main(["--tables", "peers", *SMALL])
    assert "pip install -e '.[peers]'" in capsys.readouterr().err.splitlines()[-1]
