"""Action masks that are not what they should be: one line, and never the opposite of what was meant."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

import unroll
from memory_tasks import make_ppo
from ppo_runs import TINY, agent_of, assert_one_line, saved
from toy import Toy
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.player import MaskedPredictor
from unroll.commands import export, train
from unroll.envs.make import make_env
from unroll.envs.wrappers import NoisyActions
from unroll.errors import EnvError
from unroll.policies.masking import check_masks

FOUR = spaces.Discrete(4)
TWO_PARTS = spaces.MultiDiscrete([2, 4])
NAN = [1, np.nan, 0, 0]
WRONG = {  # the masks of two environments, of which the second is wrong
    "additive": (np.array([[0.0, -np.inf, -np.inf, 0]] * 2), "environment 0 holds -inf, as masks that are added to"),
    "additive, all allowed": (np.zeros((2, 4)), "environment 0 allows no action"),
    "large negative": ([[1, 0, 0, 0], [0, -1e9, 0, 0]], "environment 1 holds -1000000000.0; true or 1 is needed"),
    "probabilities": ([[1, 0, 0, 0], [0.5, 0.5, 0, 0]], "environment 1 holds 0.5; true or 1 is needed"),
    "NaN": ([[1, 0, 0, 0], NAN], "environment 1 holds nan; true or 1 is needed"),
    "too wide": (np.ones((2, 5), bool), r"environment 0 gives 5 values, Discrete\(4\) has 4"),
    "the second too wide": ([np.ones(4, bool), np.ones(5, bool)], r"environment 1 gives 5 values, Discrete\(4\) has 4"),
    "indices": (np.array([[2], [3]]), r"environment 0 gives 1 values, Discrete\(4\) has 4"),
    "empty": ([[], []], r"environment 0 gives 0 values, Discrete\(4\) has 4"),
    "nothing": ([None, None], "environment 0 gives None; one row of 4 booleans is needed"),
    "words": ([["a", "b", "c", "d"]] * 2, "environment 0 gives .*'a'.*; one row of 4 booleans"),
    "no action": ([[1, 0, 0, 0], [0, 0, 0, 0]], "environment 1 allows no action"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_masks_that_are_no_masks_are_refused_in_one_line(kind):
    masks, message = WRONG[kind]
    with pytest.raises(EnvError, match=message) as caught:
        check_masks(masks, FOUR, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask", [[True, False, True, False], [1, 0, 1, 0], np.array([1.0, 0, 1, 0]), np.array([1, 0, 1, 0], np.uint8)]
)
def test_numbers_stand_for_booleans_where_they_are_1_and_0(mask):
    np.testing.assert_array_equal(check_masks([mask, mask], FOUR, 2), [[True, False, True, False]] * 2)


def test_masks_of_parts_are_one_row():
    with pytest.raises(EnvError, match="environment 0 gives several rows"):
        check_masks([[[True, True], [True] * 4]] * 2, TWO_PARTS, 2)
    with pytest.raises(EnvError, match="environment 0 gives 8 values"):
        check_masks(np.ones((2, 2, 4), bool), TWO_PARTS, 2)
    assert check_masks([[1, 1, 0, 0, 1, 1]], TWO_PARTS, 1).shape == (1, 6)


class Masks(Toy):
    """Gives this mask in its fourth step, and a right one before it."""

    def __init__(self, mask=None, raises=False):
        super().__init__(discrete=True)
        self.mask = mask
        self.raises = raises

    def action_masks(self):
        if self.t < 3:
            return np.ones(3, bool)
        if self.raises:
            raise KeyError("board")
        return eval(self.mask, {"np": np})


class Property(Toy):
    def __init__(self):
        super().__init__(discrete=True)
        self.t = 0

    @property
    def action_masks(self):
        return np.ones(3, bool)


class Continuous(Toy):
    def action_masks(self):
        return np.ones(1, bool)


for cls in (Masks, Property, Continuous):
    if f"Faults{cls.__name__}-v0" not in gym.registry:
        gym.register(f"Faults{cls.__name__}-v0", cls, disable_env_checker=True)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("np.array([0, -np.inf, 0])", "holds -inf"),
        ("np.ones(4, bool)", "gives 4 values, Discrete(3) has 3"),
        ("np.ones(0)", "gives 0 values"),
        ("None", "gives None"),
        ("np.array([1, np.nan, 1])", "holds nan"),
        ("np.zeros(3)", "allows no action"),
    ],
)
def test_a_run_ends_in_one_line_where_masks_are_wrong(mask, expected, tmp_path, capsys):
    more = ["--env_kwargs", f"{{mask: '{mask}'}}", "--run_dir", str(tmp_path / "run"), "--steps", "64"]
    assert train.main([*TINY, "--env", "FaultsMasks-v0", *more]) == 2
    assert_one_line(capsys, f"action_masks() of environment 0 {expected}")
    assert (tmp_path / "run/checkpoints/step_00000000").is_dir()


@pytest.mark.parametrize("vector", ["serial", "processes"])
@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("FaultsProperty-v0", "must be a method, def action_masks() without @property"),
        ("FaultsContinuous-v0", "cannot be masked: Discrete, MultiDiscrete or MultiBinary is needed"),
    ],
)
def test_masks_that_cannot_be_asked_for_are_one_line(env_id, expected, vector, tmp_path, capsys):
    more = ["--vector", vector, "--run_dir", str(tmp_path / "run"), "--steps", "64"]
    assert train.main([*TINY, "--env", env_id, *more]) == 2
    assert_one_line(capsys, expected)


@pytest.mark.parametrize("vector", ["serial", "processes"])
def test_masks_that_raise_are_one_line(vector, tmp_path, capsys):
    more = ["--env_kwargs", "{raises: true}", "--vector", vector, "--run_dir", str(tmp_path / "run"), "--steps", "64"]
    assert train.main([*TINY, "--env", "FaultsMasks-v0", *more]) == 2
    assert_one_line(capsys, "KeyError: 'board' (test_faults_masks.py, line ")
    assert "raise KeyError" in (tmp_path / "run/traceback.txt").read_text()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_of_some_environments_alone_are_one_line(order):
    makes = [lambda: Toy(discrete=True), lambda: Masks("np.ones(3, bool)")]
    agent = make_ppo(DummyVecEnv([makes[i] for i in order]))
    has, lacks = order.index(1), order.index(0)
    with pytest.raises(EnvError, match=rf"^environment {has} has action_masks\(\), and environment {lacks} has none: "):
        agent.learn(32)


def test_an_agent_that_learned_under_masks_warns_without_them_also_where_it_was_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent, config = agent_of("--env", "ToyMasked-v0")
    agent.save("zip")
    folder = saved(agent, config, "run/checkpoints/step_00000032").parents[1]
    shown = agent.env.reset()
    loaded = [unroll.load(folder), RecurrentPPO.load(folder), RecurrentPPO.load("zip")]
    loaded[0].save("again")
    loaded.append(RecurrentPPO.load("again"))
    for one in (agent, *loaded):
        with pytest.warns(UserWarning, match="the agent learned under action masks, and predict was given none"):
            one.predict(shown)
        one.predict(shown, action_masks=np.ones((len(shown), 3), bool))


def test_the_predictor_for_stable_baselines3_reads_masks_as_strictly():
    class Additive(Toy):
        def action_masks(self):
            return np.array([0, -np.inf, -np.inf])

    env = DummyVecEnv([lambda: Additive(True)])
    agent = make_ppo(env)
    with pytest.raises(EnvError, match="holds -inf"):
        MaskedPredictor(agent, env).predict(env.reset())
    with pytest.raises(EnvError, match="holds -inf"):
        agent.learn(16)


def test_noise_does_not_take_additive_masks_for_their_opposite():
    env = NoisyActions(make_env("FaultsMasks-v0", mask="np.array([0, -np.inf, -np.inf])"), 1.0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    with pytest.raises(EnvError, match=r"FaultsMasks-v0: action_masks\(\) gives \[  0. -inf -inf\]"):
        env.step(0)


def test_an_exported_policy_reads_masks_as_strictly(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    run = tmp_path / "run"
    more = ["--env_kwargs", "{mask: 'np.ones(3)'}", "--evaluation.episodes", "0", "--run_dir", str(run)]
    assert train.main([*TINY, "--env", "FaultsMasks-v0", *more, "--steps", "32"]) == 0
    assert export.main([str(run)]) == 0
    capsys.readouterr()
    monkeypatch.syspath_prepend(str(run / "onnx"))
    from run import Policy

    policy = Policy()
    shown = {"observation": np.zeros((1, 2)), "reset": np.ones(1, bool)}
    assert policy(shown | {"action_masks": np.array([[0, 1, 0]])}) == [1]
    with pytest.raises(ValueError, match="true or 1 where an action is allowed"):
        policy(shown | {"action_masks": np.array([[0, -np.inf, -np.inf]])})
    sys.modules.pop("run")
