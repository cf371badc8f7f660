"""The benchmark of rollouts on the device runs to its table."""

import json

from benchmarks import gpu, tensor_tasks


def test_arrays_and_tensors_are_compared_at_the_same_sizes(tmp_path, capsys):
    sizes = ["--n_envs", "2,3", "--n_steps", "4", "--n_epochs", "1", "--warm", "0", "--repeats", "1"]
    assert tensor_tasks.main([*sizes, "--output", str(tmp_path / "out.json")]) == 0
    assert "| environments | rollout |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["environments"], row["rollout"]) for row in rows] == [
        (2, "arrays"),
        (2, "tensors"),
        (3, "arrays"),
        (3, "tensors"),
    ]
    for row in rows:
        assert (row["× arrays"] == 1) == (row["rollout"] == "arrays")
        assert row["rollout steps/s"] > row["steps/s in all"] > 0


def test_the_table_of_recorded_minibatches_runs_on_a_cpu_too():
    rows = gpu.ppo("cpu", sizes=((3, 4),))
    assert [row["backbone"] for row in rows] == ["mingru", "gru", "lstm", "transformer"]
    for row in rows:
        assert row["first ratio, off by"] < 1e-5
        assert row["times"] > 0
