"""What cannot be recorded is refused before the learning, and what is recorded can be trained on."""

import gymnasium as gym
import h5py
import numpy as np
import pytest
import stable_baselines3

from toy import TINY
from unroll.agents.decision.player import show
from unroll.commands import record, train
from unroll.envs import load_episodes, make_env
from unroll.envs.datasets.recording import Recorder

S = gym.spaces
WIDEST = float(np.finfo(np.float32).max)
SPACES = {
    "Several": (S.Box(-1, 1, (3,), np.float32), S.MultiDiscrete([3, 3], start=[-1, -1])),
    "Binary": (S.Box(-1, 1, (3,), np.float32), S.MultiBinary(2)),
    "Widest": (S.Box(-1, 1, (3,), np.float32), S.Box(-WIDEST, WIDEST, (2,), np.float32)),
    "Unbounded": (S.Box(-1, 1, (3,), np.float32), S.Box(-np.inf, np.inf, (2,), np.float32)),
    "Choices": (S.Box(-1, 1, (3,), np.float32), S.Discrete(70_000)),
    "Sequence": (S.Sequence(S.Box(-1, 1, (2,), np.float32)), S.Discrete(2)),
    "Whole": (S.Box(-1, 1, (3,), np.float32), S.Box(-2, 2, (2,), np.int8)),
    "Minus": (S.Box(-1, 1, (3,), np.float32), S.Discrete(3, start=-1)),
    "Parts": (S.Dict(b=S.MultiDiscrete([2, 3]), a=S.Tuple([S.Discrete(2), S.MultiBinary(2)])), S.Box(-1, 1, (2,))),
}


class Odd(gym.Env):
    """Ends after `length` steps; None: never."""

    def __init__(self, name="Minus", length=8, render_mode=None):
        self.observation_space, self.action_space = SPACES[name]
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"I am given {action}"
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), self.t == self.length, False, {}


for name in SPACES:
    if f"UnrollOdd{name}-v0" not in gym.registry:
        gym.register(f"UnrollOdd{name}-v0", Odd, max_episode_steps=9, kwargs={"name": name}, disable_env_checker=True)
if "UnrollOddEndless-v0" not in gym.registry:
    gym.register("UnrollOddEndless-v0", Odd, kwargs={"length": None}, disable_env_checker=True)
    gym.register("UnrollOddEnding-v0", Odd, disable_env_checker=True)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(source, *arguments):
    small = [*TINY, "--steps", "2", "--device", "cpu", "--evaluation.episodes", "1", "--run_dir", "run"]
    return train.main(["--dataset", source, *small, *arguments])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Several",
            "takes actions of MultiDiscrete([3 3], start=[-1 -1]); a dataset holds those of a Discrete or a Box",
        ),
        ("Binary", "takes actions of MultiBinary(2); a dataset holds those of a Discrete or a Box"),
        ("Widest", "a dataset holds those of a Box whose bounds are finite, and not too far apart for float32"),
        ("Unbounded", "a dataset holds those of a Box whose bounds are finite, and not too far apart for float32"),
        ("Choices", "a dataset holds those of at most 65,536 choices"),
        ("Sequence", "observation of Sequence"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_learning(name, text, monkeypatch, capsys):
    monkeypatch.setattr(stable_baselines3.PPO, "learn", lambda *_, **__: pytest.fail("it began"))
    env = f"UnrollOdd{name}-v0"
    assert record.main(["--algorithm", "ppo", "--env", env, "--steps", "64", "--output", "x.hdf5"]) == 2
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("output", ["x.hdf5", "minari:odd/x-v0"])
@pytest.mark.parametrize("name", ["Minus", "Parts"])
def test_what_is_recorded_can_be_trained_on(name, output, capsys):
    env = f"UnrollOdd{name}-v0"
    assert record.main(["--algorithm", "ppo", "--env", env, "--steps", "64", "--output", output]) == 0
    assert load_episodes(output).env_id == env
    assert trained(output) == 0
    printed = capsys.readouterr().out
    assert "no evaluation" not in printed


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_actions_below_zero_are_played_and_recorded(algorithm, capsys):
    arguments = ["--algorithm", algorithm, "--env", "UnrollOddMinus-v0", "--steps", "300", "--output", "x.hdf5"]
    assert record.main(arguments) == 0
    with h5py.File("x.hdf5") as file:
        assert set(np.unique(file["actions"])) == {-1, 0, 1}
    episodes = load_episodes("x.hdf5")
    assert episodes.action_space == gym.spaces.Discrete(3, start=-1)
    assert (episodes.rewards == episodes.actions - 1).all()
    capsys.readouterr()


@pytest.mark.parametrize(("algorithm", "length"), [("ppo", 64), ("dqn", 64)])
def test_an_environment_without_an_end_is_cut_off_where_it_is_said(algorithm, length, capsys):
    arguments = ["--algorithm", algorithm, "--env", "UnrollOddEndless-v0", "--steps", "64", "--output", "x.hdf5"]
    assert record.main(arguments) == 0
    assert f"has no step limit: {2048 // 64 if algorithm == 'ppo' else 1} episodes" in capsys.readouterr().out
    episodes = load_episodes("x.hdf5")
    assert set(episodes.lengths) == {length}
    assert episodes.truncated.all()
    assert episodes.env_kwargs == {"max_episode_steps": length}
    assert trained("x.hdf5") == 0  # and its evaluation ends

    assert record.main(["--run", "run", "--episodes", "1", "--env_kwargs", "{}", "--output", "y.hdf5"]) == 0
    assert "1 episodes were cut off after 1,000 steps" in capsys.readouterr().out


def test_a_limit_of_the_users_and_an_end_of_the_environments_own_are_kept(capsys):
    limit = ["--env_kwargs", "{max_episode_steps: 5}"]
    arguments = ["--algorithm", "ppo", "--env", "UnrollOddEndless-v0", "--steps", "64"]
    assert record.main([*arguments, *limit, "--output", "x.hdf5"]) == 0
    assert load_episodes("x.hdf5").env_kwargs == {"max_episode_steps": 5}
    arguments[3] = "UnrollOddEnding-v0"
    assert record.main([*arguments, "--output", "y.hdf5"]) == 0
    episodes = load_episodes("y.hdf5")
    assert episodes.env_kwargs == {}
    assert episodes.terminated.all()
    assert "no step limit" not in capsys.readouterr().out


def test_a_recording_of_too_long_episodes_is_not_lost(capsys):
    arguments = ["--algorithm", "ppo", "--env", "UnrollOddMinus-v0", "--steps", "64", "--keep", "3"]
    assert record.main([*arguments, "--output", "x.hdf5"]) == 0
    assert "no episode has as few as 3 steps: the shortest one is kept" in capsys.readouterr().out
    assert len(load_episodes("x.hdf5")) == 1


def test_an_end_that_is_an_array_is_one():
    class Array(Odd):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, np.array([terminated]), truncated, info

    done = []
    env = Recorder(Array(length=2), done)
    env.reset()
    for _ in range(2):
        env.step(np.int64(0))
    assert done[0].terminated is True


def test_whole_numbers_are_played_and_recorded(capsys):
    arguments = ["--algorithm", "sac", "--env", "UnrollOddWhole-v0", "--steps", "40", "--output", "x.hdf5"]
    assert record.main(arguments) == 0
    episodes = load_episodes("x.hdf5")
    assert set(np.unique(episodes.actions)) == {-2, -1, 0, 1, 2}
    capsys.readouterr()

    env = show(make_env("UnrollOddWhole-v0"))
    env.reset()
    observation = env.step(np.array([-0.76, 1.2], np.float32))[0]
    assert observation["previous_action"].tolist() == [-1, 1]


class Fails(Odd):
    """Fails in its step number 20, in one of several ways."""

    def __init__(self, how="raises"):
        super().__init__()
        self.how = how
        self.steps = 0

    def step(self, action):
        self.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps == 20:
            if self.how == "raises":
                raise ConnectionError("no answer")
            if self.how == "exits":
                raise SystemExit(3)
            if self.how == "nan reward":
                reward = float("nan")
            if self.how == "nan":
                observation = np.full(3, np.nan)
            if self.how == "a number":
                observation = 0.5
        return observation, reward, terminated, truncated, info


if "UnrollOddFails-v0" not in gym.registry:
    gym.register("UnrollOddFails-v0", Fails, disable_env_checker=True)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raises", "environment 0 (UnrollOddFails-v0): ConnectionError: no answer"),
        ("exits", "environment 0 (UnrollOddFails-v0): SystemExit: 3"),
        ("nan reward", "UnrollOddFails-v0: the reward is nan after 4 steps of an episode"),
        ("nan", "UnrollOddFails-v0: the observation is not finite after 4 steps of an episode"),
        ("a number", "environment 0 (UnrollOddFails-v0): the observation has the shape (), its space says (3,)"),
    ],
)
def test_an_environment_that_fails_costs_the_episode_in_which_it_does(how, text, capsys):
    env = ["--env", "UnrollOddFails-v0", "--env_kwargs", f"{{how: {how}}}"]
    assert record.main(["--algorithm", "ppo", *env, "--steps", "64", "--output", "x.hdf5"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert text in error
    assert error.endswith("the episodes that were finished before are in x.hdf5")
    assert load_episodes("x.hdf5").lengths.tolist() == [8, 8]


class Says(Odd):
    def step(self, action):
        *played, _ = super().step(action)
        return *played, {"episode": 7, "is_success": "no"}


if "UnrollSays-v0" not in gym.registry:
    gym.register("UnrollSays-v0", Says, disable_env_checker=True)


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_infos_of_the_environments_own_are_not_taken_for_monitors(algorithm, capsys):
    arguments = ["--algorithm", algorithm, "--env", "UnrollSays-v0", "--steps", "64", "--output", "a.hdf5"]
    assert record.main(arguments) == 0, capsys.readouterr().err
    assert (load_episodes("a.hdf5").lengths == 8).all()
