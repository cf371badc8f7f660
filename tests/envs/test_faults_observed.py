"""What an environment gives that does not fit its spaces is one line, where NumPy would make another number of it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from fault_envs import Simple
from unroll.agents.evaluation.play import Episode, play
from unroll.envs.make import make_env, make_vec_env
from unroll.envs.observed import check_observation
from unroll.envs.wrappers import WholeActions, whole_actions
from unroll.errors import EnvError

NUMBERS = spaces.Box(-9, 9, (3,), np.float32)
BYTES = spaces.Box(0, 255, (2,), np.uint8)
STATES = spaces.Discrete(5, start=-2)
SEVERAL = spaces.MultiDiscrete([3, 4], start=[1, 0])
PARTS = spaces.Dict(b=spaces.Tuple([NUMBERS, STATES]), a=BYTES)


@pytest.mark.parametrize(
    ("space", "given", "text"),
    [
        (NUMBERS, 0.5, "the observation has the shape (), its space says (3,)"),
        (NUMBERS, np.array([0.5]), "the observation has the shape (1,), its space says (3,)"),
        (NUMBERS, np.zeros((3, 1)), "the observation has the shape (3, 1), its space says (3,)"),
        (NUMBERS, [[1, 2], [3]], "rows of different lengths"),
        (NUMBERS, None, "the observation has the shape (), its space says (3,)"),
        (NUMBERS, ["a", "b", "c"], "the observation holds <U1, not numbers"),
        (NUMBERS, {"a": 1}, "the observation is a dict of a, its space says (3,)"),
        (BYTES, np.array([0.2, 1.0]), "the observation holds 0.2, its space says uint8"),
        (BYTES, np.array([300, 1]), "the observation holds 300, its space says uint8"),
        (BYTES, np.array([np.nan, 1]), "the observation holds nan, its space says uint8"),
        (STATES, -3, "the observation is -3, none of Discrete(5, start=-2)"),
        (STATES, 3, "the observation is 3, none of"),
        (STATES, 1.0, "the observation is 1.0 (float64), none of"),
        (SEVERAL, np.array([0, 0]), "the observation is [0 0], none of MultiDiscrete"),
        (SEVERAL, np.array([1, 4]), "the observation is [1 4], none of MultiDiscrete"),
        (SEVERAL, np.array([1]), "the observation has the shape (1,), its space says (2,)"),
        (PARTS, {"a": np.zeros(2, np.uint8)}, "the observation is a dict of a, its space has b, a"),
        (PARTS, {"a": np.zeros(2, np.uint8), "b": (np.zeros(3),)}, "a tuple of 1, its space has 2 parts"),
        (PARTS, {"a": np.zeros(2, np.uint8), "b": (np.zeros(3), 9)}, "the observation is 9, none of"),
    ],
)
def test_what_does_not_fit_its_space_is_told(space, given, text):
    with pytest.raises(EnvError) as caught:
        check_observation(space, given)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (NUMBERS, [1, 2.5, True]),
        (NUMBERS, np.full(3, 100.0)),  # out of bounds, as many environments show now and then
        (BYTES, np.array([3.0, 255.0])),
        (STATES, np.int8(-2)),
        (STATES, np.array([2])),
        (SEVERAL, [3, 3]),
        (spaces.MultiBinary(2), np.array([True, False])),
        (PARTS, {"a": [1, 2], "b": [np.zeros(3), 0]}),
        (spaces.Text(5), "any"),
    ],
)
def test_what_fits_is_shown(space, given):
    check_observation(space, given)


class Given(Simple):
    """Shows what it is told to, from its reset or its first step on."""

    def __init__(self, space=NUMBERS, given=None, at=0, reset=None, flag=False):
        self.observation_space = space
        self.given = given
        self.at = at
        self.reset_gives = reset
        self.flag = flag

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        return result if self.reset_gives is None else self.reset_gives

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.flag, self.t == self.length, info

    def _observe(self):
        if self.t < self.at:
            return self.observation_space.sample()
        return self.given


if "UnrollTestGiven-v0" not in gym.registry:
    gym.register("UnrollTestGiven-v0", Given, disable_env_checker=True)


class First:
    """Always takes the first action."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros(len(episode_start), np.int64), None


# State -1 would be the last one, 300 as uint8 44, and the two numbers of a reset observation and info.
WRONG = {
    "a state": (dict(space=spaces.Discrete(5), given=-1), "the observation is -1, none of Discrete(5)"),
    "in a Dict": (
        dict(space=spaces.Dict(s=spaces.Discrete(5), x=NUMBERS), given={"s": -1, "x": np.zeros(3)}),
        "the observation is -1, none of",
    ),
    "flattened bytes": (
        dict(space=spaces.Box(0, 255, (2, 2), np.uint8), given=np.full((2, 2), 300)),
        "the observation holds 300, its space says uint8",
    ),
    "one number": (dict(given=np.array([0.5])), "the observation has the shape (1,)"),
    "a flag": (dict(given=np.zeros(3), flag=float("nan")), "terminated is nan, where true or false is needed"),
    "a count": (dict(given=np.zeros(3), flag=3), "terminated is 3, where true or false is needed"),
    "an old reset": (
        dict(space=spaces.Box(-1, 1, (2,), np.float32), reset=np.zeros(2)),
        "reset() gives an array of shape (2,), where an observation and a dict are needed",
    ),
    "a number": (dict(reset=3), "reset() gives one int, where an observation and a dict are needed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_environment_that_lies_is_named_in_training_and_evaluation(wrong):
    kwargs, text = WRONG[wrong]
    kwargs = kwargs if "reset" in kwargs else kwargs | {"at": 2}  # a lie in the second step
    vector = make_vec_env("UnrollTestGiven-v0", 2, env_kwargs=kwargs)

    def steps():
        vector.reset()
        for _ in range(3):
            vector.step(np.zeros(2, np.int64))

    with pytest.raises(EnvError) as caught:
        steps()
    message = str(caught.value)
    assert text in message
    assert message.startswith("environment 0 (UnrollTestGiven-v0): ")
    assert ("reset before episode 1" if "reset" in kwargs else "of episode 1 of this process") in message

    def make():
        return make_env("UnrollTestGiven-v0", env_kwargs=kwargs)

    with pytest.raises(EnvError) as caught:
        play(First(), make, [Episode(7)])
    assert text in str(caught.value)
    assert "with seed 7" in str(caught.value)


def test_an_image_that_is_no_image_is_told():
    kwargs = dict(space=spaces.Box(0, 255, (40, 40, 3), np.uint8), given=np.full((40, 40, 3), 0.5))
    vector = make_vec_env("UnrollTestGiven-v0", env_kwargs=kwargs, images=True)
    with pytest.raises(EnvError, match=r"the observation holds 0.5, its space says uint8"):
        vector.reset()


def test_an_observation_of_a_billion_numbers_is_refused():
    with pytest.raises(EnvError, match=r"is 1,000,000,000 numbers"):
        make_env("UnrollTestGiven-v0", env_kwargs=dict(space=spaces.Discrete(10**9)))


def test_a_list_that_is_changed_in_place_is_copied():
    shown = [0.0, 0.0]

    class Listed(Simple):
        def _observe(self):
            shown[0] = float(self.t)
            return shown

    gym.register("UnrollTestListed-v0", Listed, max_episode_steps=3, disable_env_checker=True)
    vector = make_vec_env("UnrollTestListed-v0")
    vector.reset()
    for _ in range(3):
        _, _, _, infos = vector.step(np.zeros(1, np.int64))
    del gym.registry["UnrollTestListed-v0"]
    assert list(infos[0]["terminal_observation"]) == [3.0, 0.0]


def test_a_simulator_that_exits_is_a_fault_of_the_environment():
    class Exits(Simple):
        def step(self, action):
            raise SystemExit(3)

    gym.register("UnrollTestExits-v0", Exits, disable_env_checker=True)
    vector = make_vec_env("UnrollTestExits-v0")
    vector.reset()
    with pytest.raises(EnvError, match="SystemExit: 3"):
        vector.step(np.zeros(1, np.int64))
    with pytest.raises(EnvError, match="SystemExit: 3"):
        play(First(), lambda: make_env("UnrollTestExits-v0"), [Episode(0)])
    del gym.registry["UnrollTestExits-v0"]


def test_whole_numbers_are_given_where_no_others_are_taken():
    class Whole(Simple):
        action_space = spaces.Box(-2, 2, (2,), np.int8)

        def step(self, action):
            assert self.action_space.contains(action), action
            return super().step(action)

    env = whole_actions(Whole())
    assert isinstance(env, WholeActions)
    env.reset()
    env.step(np.array([-0.76, 2.4], np.float32))
    assert env.action(np.array([-0.76, 2.4])).tolist() == [-1, 2]
    assert whole_actions(Simple()).action_space == Simple.action_space
