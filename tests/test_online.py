"""The runs of PPO that a table is made of: trained, resumed and read as the benchmark says."""

import json

import pytest

from benchmarks import online

TINY = ["--steps", "64", "--n_envs", "2", "--n_steps", "8", "--n_epochs", "1", "--batch_size", "16"]
TINY += ["--evaluation.episodes", "2"]


def run(monkeypatch, capsys, output, *flags):
    config = ["--config", "configs/ppo/cartpole_masked.yaml", "--output", str(output), "--seeds", "1", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", ["online", *config, *flags, "--", *TINY])
    online.main()
    return capsys.readouterr()


def test_agents_and_controls_are_trained_once_and_their_last_returns_are_the_table(monkeypatch, capsys, tmp_path):
    agents = ["--agents", "memoryless,sb3"]
    told = run(monkeypatch, capsys, tmp_path, *agents)
    assert told.err.count("done") == 2
    for agent in ("memoryless", "sb3"):
        evaluation = json.loads((tmp_path / agent / "seed0/evaluation.json").read_text())
        mean = evaluation["results"][0]["return_mean"]
        assert evaluation["steps"] == 64
        assert f"| {mean:.{1 if mean > 10 else 2}f} |" in told.out
    evaluation = json.loads((tmp_path / "memoryless/seed0/evaluation.json").read_text())
    assert evaluation["ablation"]["returns"] == evaluation["results"][0]["returns"]  # nothing to forget
    again = run(monkeypatch, capsys, tmp_path, *agents)
    assert "done" not in again.err
    assert again.out == told.out


def test_an_agent_that_does_not_exist_and_a_run_that_fails_are_told(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, tmp_path, "--agents", "mingur")
    assert "no agent mingur; there are mingru" in capsys.readouterr().err
    monkeypatch.setitem(online.AGENTS, "lstm", "lstmm")
    with pytest.raises(SystemExit, match=r"lstm, seed 0: train\.py: unknown backbone 'lstmm'"):
        run(monkeypatch, capsys, tmp_path, "--agents", "lstm")
