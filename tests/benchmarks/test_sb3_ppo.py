"""Stable-Baselines3's PPO under a config of ours, beside our runs in one report."""

import json

import pytest

from benchmarks import sb3_ppo
from fake_runs import fake_run
from unroll.commands import compare


@pytest.mark.parametrize(("flags", "name"), [([], "sb3"), (["--recurrent"], "sb3_contrib")])
def test_its_run_is_compared_with_ours(tmp_path, flags, name):
    if flags:
        pytest.importorskip("sb3_contrib", reason="the extra peers is not installed")
    tiny = ["--steps", "64", "--n_envs", "2", "--n_steps", "8", "--n_epochs", "1", "--batch_size", "16"]
    config = ["--config", "configs/ppo/tmaze.yaml", *tiny, "--evaluation.episodes", "2"]
    sb3_ppo.main([*flags, *config, "--run_dir", str(tmp_path / name)])
    evaluation = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert evaluation["steps"] == 64
    fake_run(tmp_path / "gru", "gru", 0, 2.0, normalized=False)
    assert compare.main(["--from", str(tmp_path)]) == 0
    (experiment,) = json.loads((tmp_path / "comparison.json").read_text())["experiments"].values()
    assert experiment["backbones"][name]["scores"] == [evaluation["results"][0]["return_mean"]]
    assert experiment["backbones"]["gru"]["scores"] == [2.0]


def test_it_learns_in_an_environment_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_pole.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MyPole-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny = ["--steps", "32", "--n_envs", "1", "--n_steps", "16", "--n_epochs", "1", "--batch_size", "16"]
    run = tmp_path / "run"
    sb3_ppo.main(["--env", "my_pole:MyPole-v0", *tiny, "--evaluation.episodes", "2", "--run_dir", str(run)])
    assert json.loads((run / "evaluation.json").read_text())["steps"] == 32
