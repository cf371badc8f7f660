"""What float32 cannot hold is said before anything is learned from it."""

import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from toy import TINY, make_agent
from unroll.agents.decision.player import decision_player
from unroll.agents.evaluation.play import Episode, play
from unroll.commands import inspect, train
from unroll.envs import load_episodes
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.errors import DatasetError, EnvError, HyperparameterError
from unroll.policies.actions import make_action

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
SECONDS = 1.75e9 + np.arange(12)  # float32 knows them to 128 seconds
WIDEST = float(np.finfo(np.float32).max)


def observations(column):
    return np.stack([np.arange(12), column, np.arange(12)], 1).astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_times_since_1970_are_told_with_their_column_and_what_is_lost(fields, write, dtype, caplog, capsys):
    path = str(write(fields | {"observations": observations(SECONDS).astype(dtype)}))
    line = "column 1 of observations goes from 1750000000 to 1750000011, where float32 tells apart steps of 128 alone"
    episodes = load_episodes(path)
    assert len(np.unique(episodes.observations[:, 1])) == 1  # nothing of it is left
    assert caplog.text.count(line) == 1
    assert inspect.main([path]) == 0
    assert line in capsys.readouterr().out


def test_a_column_that_was_quantised_before_is_told_as_well(fields, write):
    column = (1.75e9 + 100.0 * np.arange(12)).astype(np.float32)
    episodes = load_hdf5(write(fields | {"observations": observations(column).astype(np.float32)}))
    (remark,) = episodes.remarks
    assert remark.startswith("column 1 of observations goes from 1750000000 to 1750001152")


def test_values_that_lie_close_together_or_are_small_or_constant_are_not_told(fields, write):
    for column in (1.75e9 + 1e6 * np.arange(12), np.full(12, 1e9 + 1), 1e-30 * np.arange(12), np.arange(12) % 2):
        assert load_hdf5(write(fields | {"observations": observations(column)})).remarks == ()


def test_huge_values_and_rewards_are_told(fields, write):
    fields["observations"] = observations(1e300 * np.arange(12))
    episodes = load_hdf5(write(fields))
    assert episodes.remarks == ("column 1 of observations reaches 1.1e+301, float32 holds up to 3.4e+38",)
    episodes = load_hdf5(write(fields | {"observations": np.zeros((12, 3)), "rewards": SECONDS}))
    assert "rewards goes from 1750000000 to 1750000011" in episodes.remarks[0]


def test_of_many_columns_some_are_named(fields, write):
    wide = np.repeat(SECONDS[:, None], 20, 1)
    remarks = load_hdf5(write(fields | {"observations": wide})).remarks
    assert len(remarks) == 6
    assert remarks[-1] == "so do 15 more columns of observations"


def test_columns_of_a_minari_set_are_watched_by_their_place_in_the_row(caplog):
    space = gym.spaces.Dict(
        kind=gym.spaces.Discrete(3),
        time=gym.spaces.Box(0, 1e10, (2,), np.float64),
    )
    time = np.stack([np.zeros(13), 1.75e9 + np.arange(13)], 1)
    buffer = EpisodeBuffer(
        id=0,
        observations={"kind": np.zeros(13, np.int64), "time": time},
        actions=np.zeros((12, 1), np.float32),
        rewards=np.zeros(12),
        terminations=np.arange(12) == 11,
        truncations=np.zeros(12, bool),
    )
    actions = gym.spaces.Box(-1, 1, (1,), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "unit/time-v0", [buffer], observation_space=space, action_space=actions, **ABOUT
        )
    load_episodes("minari:unit/time-v0")
    assert "column 4 of observations goes from 1750000000 to 1750000012" in caplog.text


def test_rewards_that_add_up_to_more_than_float32_holds_are_one_line(fields, write, tmp_path, capsys):
    path = str(write(fields | {"rewards": np.full(12, 3e38, np.float32)}))
    with pytest.raises(DatasetError, match=r"rewards add up to 1.5e\+39, float32 holds up to 3.4e\+38: divide them"):
        load_episodes(path)
    assert inspect.main([path]) == 2
    assert "can be trained on: no: rewards add up to 1.5e+39" in capsys.readouterr().out
    assert train.main(["--dataset", path, *TINY, "--run_dir", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    fields["rewards"] = np.where(np.arange(12) % 2, 3e38, -3e38)  # which add up to nothing
    assert len(load_episodes(str(write(fields)))) == 3


class Paid(gym.Env):
    """Pays what it is told to."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-WIDEST, WIDEST, (2,), np.float32)

    def __init__(self, reward=1.0):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), self.reward, False, False, {}


if "UnrollTestWidest-v0" not in gym.registry:
    gym.register("UnrollTestWidest-v0", Paid, max_episode_steps=10)


def test_actions_between_the_largest_numbers_are_one_line(fields, write, capsys):
    path = str(write(fields, env="UnrollTestWidest-v0"))
    with pytest.raises(DatasetError, match=r"actions has bounds too far apart for float32, Box\(-3.403e\+38") as error:
        load_episodes(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not supported"):
        make_action(Paid.action_space, 4)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_return_that_is_no_number_is_one_line_and_in_no_table(reward):
    class Still:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros((len(observation), 2), np.float32), None

    where = "in step 1 of the evaluation's episode with seed 7"
    with pytest.raises(EnvError, match=rf"^Paid: the reward is {reward} {where}, after the action \[0. 0.\]$"):
        play(Still(), lambda: Paid(reward), [Episode(7)])


def test_a_return_that_float32_cannot_hold_cannot_be_asked_for():
    with pytest.raises(HyperparameterError, match=r"a return of 1e\+39 cannot be asked for"):
        decision_player(make_agent(condition="best"), "ToyBox-v0", [1e39], "carried")
