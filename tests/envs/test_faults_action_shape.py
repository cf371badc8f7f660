"""Continuous actions of any shape: rows in a dataset, and the environment's own shape wherever they are played."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from toy import TINY
from unroll.commands import evaluate, export, inspect, record, train
from unroll.envs import load_episodes
from unroll.errors import DatasetError

RUN = [*TINY, "--steps", "150", "--device", "cpu", "--evaluation.every", "0", "--evaluation.episodes", "2"]
RUN += ["--learning_rate", "0.01", "--warmup_steps", "10", "--log_every", "50", "--run_dir", "run"]


class Shaped(gym.Env):
    """Pays for actions near to a half, of its own shape alone."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, shape=(), render_mode=None):
        low = -1 - np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        self.action_space = gym.spaces.Box(low, -low, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        assert np.shape(action) == self.action_space.shape, f"I am given {np.shape(action)}"
        return np.zeros(3, np.float32), -float(np.abs(np.asarray(action) - 0.5).mean()), False, False, {}


SHAPES = {"Matrix": (2, 2), "Scalar": (), "Deep": (1, 3, 1)}
for name, shape in SHAPES.items():
    if f"UnrollTest{name}-v0" not in gym.registry:
        gym.register(f"UnrollTest{name}-v0", Shaped, max_episode_steps=6, kwargs={"shape": shape})


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("output", "name"), [*(("data.hdf5", name) for name in SHAPES), ("minari:shape/data-v0", "Matrix")]
)
def test_what_is_recorded_is_trained_on_played_and_recorded_again(name, output, capsys):
    env = f"UnrollTest{name}-v0"
    width = int(np.prod(SHAPES[name]))
    assert record.main(["--algorithm", "ppo", "--env", env, "--steps", "64", "--output", output]) == 0
    episodes = load_episodes(output)
    assert episodes.actions.shape == (episodes.n_steps, width)
    np.testing.assert_array_equal(episodes.action_space.high, 1 + np.arange(width, dtype=np.float32))
    assert inspect.main([output]) == 0

    assert train.main(["--dataset", output, *RUN, "--steps", "2"]) == 0
    assert evaluate.main(["run", "--output", "again.json"]) == 0
    assert record.main(["--run", "run", "--episodes", "2", "--noise", "0.1", "--output", "played.hdf5"]) == 0
    assert load_episodes("played.hdf5").actions.shape == (12, width)
    capsys.readouterr()


def test_a_file_of_matrices_is_learned_and_an_export_plays_it(write, capsys):
    pytest.importorskip("onnxruntime")
    from unroll.export.play import play
    from unroll.export.runner import Policy

    n = 120
    random = np.random.default_rng(0)
    actions = np.repeat(random.uniform(-0.5, 1.5, (20, 2, 2)), 6, 0).clip(-1, 1).astype(np.float32)
    fields = {
        "observations": np.zeros((n, 3), np.float32),
        "actions": actions,
        "rewards": -np.abs(actions - 0.5).mean((1, 2)),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(1, n + 1) % 6 == 0,
    }
    path = str(write(fields, env="UnrollTestMatrix-v0"))
    assert train.main(["--dataset", path, *RUN, "--evaluation.targets", "[0]"]) == 0
    score = json.loads(Path("run/evaluation.json").read_text())["results"][0]["return_mean"]
    assert export.main(["run"]) == 0
    assert play(Policy("run/onnx"), gym.make("UnrollTestMatrix-v0"), 0.0) == pytest.approx(score, abs=1e-3)
    capsys.readouterr()


def test_a_scalar_for_each_step_is_one_column(write):
    n = 12
    fields = {
        "observations": np.zeros((n, 3), np.float32),
        "actions": np.linspace(-1, 1, n, dtype=np.float32),
        "rewards": np.zeros(n),
        "terminals": np.arange(1, n + 1) % 6 == 0,
    }
    episodes = load_episodes(str(write(fields, env="UnrollTestScalar-v0")))
    assert episodes.actions.shape == (12, 1)
    assert episodes.action_space == gym.spaces.Box(-1, 1, (1,), np.float32)


def test_actions_of_another_number_are_refused_by_their_numbers(write):
    fields = {
        "observations": np.zeros((6, 3), np.float32),
        "actions": np.zeros((6, 3), np.float32),
        "rewards": np.zeros(6),
        "terminals": np.arange(6) == 5,
    }
    with pytest.raises(DatasetError, match="actions is 3 wide, UnrollTestMatrix-v0's are 4"):
        load_episodes(str(write(fields, env="UnrollTestMatrix-v0")))
