"""A sample of what ``python -m tests.reliability combinations`` checks by the hundred."""

from tests.reliability import combinations


def test_random_configs_go_on_to_the_same_bits_after_a_stop(capsys):
    assert combinations.main(["--cases", "1", "--seed", "3"]) == 0
    assert "broken: 0" in capsys.readouterr().out


def test_a_run_that_ends_otherwise_after_a_stop_is_found(monkeypatch, capsys):
    monkeypatch.setattr("unroll.agents.ppo.rollout_state.set_random_state", lambda *_: None)  # as if it were forgotten
    monkeypatch.setattr(combinations, "CHOICES", {"ppo": ""})
    monkeypatch.setattr(combinations, "ENVS", ["CartPoleNoVel-v1"])
    assert combinations.main(["--cases", "1", "--seed", "2"]) == 1
    printed = capsys.readouterr().out
    assert "broken: 1" in printed
    assert "tensors" in printed
    assert "unroll train --backbone.d_model 8" in printed
