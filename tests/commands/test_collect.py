"""The recorder: an agent of Stable-Baselines3 while it learns, a trained run of ours, and no recording lost."""

import dataclasses
import signal

import h5py
import numpy as np
import pytest

from toy import TINY, toy_episodes
from unroll.agents.evaluation import play
from unroll.commands import record as collect
from unroll.commands import train
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5


def test_a_learning_agent_is_recorded_and_the_recording_can_be_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--algorithm", "ppo", "--env", "CartPole-v1", "--steps", "2048", "--keep", "1500", "--n_envs", "2"]
    assert collect.main([*options, "--output", "cartpole.hdf5"]) == 0
    assert b"unroll record" in h5py.File("cartpole.hdf5").attrs["command"]
    episodes = load_episodes("cartpole.hdf5")
    assert 1000 < episodes.n_steps <= 1500
    assert episodes.env_id == "CartPole-v1"
    assert (episodes.returns == episodes.lengths).all()
    assert (
        train.main(["--dataset", "cartpole.hdf5", *TINY, "--condition", "best", "--steps", "3", "--run_dir", "run"])
        == 0
    )

    played = ["--run", "run", "--episodes", "6", "--noise", "0.3", "--targets", "20", "50", "--seed", "7"]
    assert collect.main([*played, "--output", "minari:cartpole/played-v0"]) == 0
    assert len(load_episodes("minari:cartpole/played-v0")) == 6
    assert collect.main([*played, "--output", "played.hdf5"]) == 0
    again = load_episodes("played.hdf5")
    np.testing.assert_array_equal(np.sort(again.returns), np.sort(load_episodes("minari:cartpole/played-v0").returns))
    capsys.readouterr()


def test_a_run_plays_in_the_environment_that_its_config_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hdf5(dataclasses.replace(toy_episodes(4), env_id=None), "toy.hdf5")
    evaluation = {"env": "ToyBox-v0", "env_kwargs": "{max_episode_steps: 7}", "targets": "[5, 3]", "max_steps": "900"}
    flags = [word for name, value in evaluation.items() for word in (f"--evaluation.{name}", value)]
    learned = [*TINY, "--condition", "best", "--steps", "1", "--evaluation.episodes", "1", "--device", "cpu"]
    assert train.main(["--dataset", "toy.hdf5", *learned, *flags, "--run_dir", "run"]) == 0

    asked = []

    def noted(*arguments, max_steps, play=play.play):
        asked.append(([episode.target_return for episode in arguments[2]], max_steps))
        play(*arguments, max_steps=max_steps)

    monkeypatch.setattr(play, "play", noted)
    assert collect.main(["--run", "run", "--episodes", "4", "--output", "its_own.hdf5"]) == 0
    episodes = load_episodes("its_own.hdf5")
    assert episodes.lengths.tolist() == [7] * 4
    assert (episodes.env_id, episodes.env_kwargs) == ("ToyBox-v0", {"max_episode_steps": 7})

    flags = ["--env_kwargs", "{max_episode_steps: 5}", "--targets", "4", "--max_steps", "6"]
    assert collect.main(["--run", "run", "--episodes", "2", *flags, "--output", "asked.hdf5"]) == 0
    assert load_episodes("asked.hdf5").lengths.tolist() == [5] * 2
    assert asked == [([5, 3, 5, 3], 900), ([4, 4], 6)]
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "x.hdf5"],
        ["--algorithm", "ppo", "--output", "x.hdf5"],
        ["--algorithm", "ppo", "--env", "CartPole-v1", "--output", "x.hdf5", "--n_envs", "0"],
        ["--run", "x", "--noise", "-1", "--output", "x.hdf5"],
        ["--algorithm", "ppoo", "--env", "CartPole-v1", "--output", "x.hdf5"],
    ],
)
def test_a_wrong_recording_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        collect.main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("flag", [["--noise", "0.5"], ["--episodes=3"], ["--stochastic"], ["--steps", "50"]])
def test_an_option_that_means_nothing_here_is_one_line(flag, tmp_path, capsys):
    learning = flag[0] == "--steps"
    source = ["--run", "run"] if learning else ["--algorithm", "ppo", "--env", "CartPole-v1"]
    with pytest.raises(SystemExit, match="2"):
        collect.main([*source, *flag, "--output", str(tmp_path / "x.hdf5")])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag[0].partition('=')[0]} goes with {'--algorithm' if learning else '--run'}" in line


@pytest.mark.parametrize("output", ["there.hdf5", "x.csv", "minari:bad", "minari:there/already-v0"])
def test_a_recording_that_could_not_be_written_is_refused_before_it_begins(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.hdf5").write_text("precious")
    (tmp_path / "minari" / "there" / "already-v0").mkdir(parents=True)
    monkeypatch.setattr(collect, "record_learning", lambda *_: pytest.fail("it began"))
    assert collect.main(["--algorithm", "ppo", "--env", "CartPole-v1", "--output", output]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert (tmp_path / "there.hdf5").read_text() == "precious"


def test_an_algorithm_that_does_not_suit_the_actions_is_one_line(tmp_path, capsys):
    assert collect.main(["--algorithm", "sac", "--env", "CartPole-v1", "--output", str(tmp_path / "x.hdf5")]) == 2
    assert "sac cannot learn in CartPole-v1" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_is_written(number, tmp_path, monkeypatch, capsys):
    def interrupted(self, steps):
        self.env.reset()
        for _ in range(100):
            self.env.step(np.zeros(1, int))
        signal.raise_signal(number)

    monkeypatch.setattr("stable_baselines3.PPO.learn", interrupted)
    output = tmp_path / "x.hdf5"
    arguments = ["--algorithm", "ppo", "--env", "CartPole-v1", "--output"]
    assert collect.main([*arguments, str(output)]) == 128 + number
    assert len(load_episodes(str(output))) >= 5
    assert capsys.readouterr().err == "interrupted: writing the episodes that are finished\n"

    # before the first episode has ended
    monkeypatch.setattr("stable_baselines3.PPO.learn", lambda self, steps: signal.raise_signal(number))
    assert collect.main([*arguments, str(tmp_path / "y.hdf5")]) == 128 + number
    assert "no episode was finished" in capsys.readouterr().err


def test_noise_disturbs_what_is_done_and_the_recording_holds_it():
    from unroll.envs.datasets.recording import Recorder, to_episodes
    from unroll.envs.make import make_env
    from unroll.envs.wrappers import NoisyActions, ReturnToGo

    for env_id, quiet in (("ToyBox-v0", np.zeros(1)), ("ToyDiscrete-v0", np.int64(0))):
        done = []
        env = NoisyActions(ReturnToGo(Recorder(make_env(env_id), done)), noise=0.5)
        for seed in (3, 3):
            env.reset(seed=seed)
            ended = False
            while not ended:
                observation, _, _, ended, _ = env.step(quiet)
            assert observation["previous_action"] == done[-1].actions[-1]  # the policy sees what was carried out
        episodes = to_episodes(done, make_env(env_id), "noisy")
        assert (episodes.actions != 0).any()
        assert episodes.rewards == pytest.approx(episodes.actions.reshape(-1))
        np.testing.assert_array_equal(episodes.actions[:12], episodes.actions[12:])  # the same seed, the same noise
