"""Observations, zips and calls that are not RecurrentPPO's own: one line says what to write instead."""

import io
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import MaskedNoise, Noise, make_ppo, vector
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.player import MaskedPredictor
from unroll.errors import CheckpointError, EnvError

ROW = spaces.Box(-1, 1, (2,), np.float32)
FLATTEN = r"gymnasium\.wrappers\.FlattenObservation makes a row of numbers of it"
REFUSED = {  # observations, and what is said of them
    "number": (spaces.Box(0, 1, ()), rf"^observations are of Box of shape \(\), .*; {FLATTEN}"),
    "number in a dict": (
        spaces.Dict(a=spaces.Box(0, 1, ()), b=ROW),
        rf"^a of the observation is of Box of shape.*{FLATTEN}",
    ),
    "tuple": (spaces.Tuple([ROW, spaces.Discrete(3)]), rf"^observations are of Tuple, .*; {FLATTEN}"),
    "tuple in a dict": (spaces.Dict(a=spaces.Tuple([ROW]), b=ROW), rf"^a of the observation is of Tuple, .*{FLATTEN}"),
    "dict in a dict": (spaces.Dict(a=spaces.Dict(b=ROW)), rf"^a of the observation is of Dict, .*{FLATTEN}"),
    "choices": (spaces.MultiDiscrete([[2, 3], [3, 4]]), rf"^observations are of MultiDiscrete, .*{FLATTEN}"),
    "sequence": (spaces.Sequence(ROW), "^observations are of Sequence, .*; a wrapper must make numbers of it$"),
    "text": (
        spaces.Dict(a=spaces.Text(3), b=ROW),
        r"^a of the observation is of Text, .*make_vec_env leaves the texts",
    ),
}


class Shows(gym.Env):
    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputLstmPolicy"])
def test_observations_that_no_network_takes_are_refused_with_what_would_help(kind, policy):
    space, message = REFUSED[kind]
    with pytest.raises(EnvError, match=message) as caught:
        RecurrentPPO(policy, Shows(space))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        ("MlpLstmPolicy", spaces.Dict(a=ROW), "MlpPolicy does not take observations of a: 2 numbers; MultiInputPolicy"),
        ("CnnPolicy", ROW, "CnnPolicy does not take observations of 2 numbers; MlpPolicy does"),
        ("MultiInputPolicy", ROW, "MultiInputPolicy does not take observations of 2 numbers; MlpPolicy does"),
    ],
)
def test_a_policy_for_other_observations_says_which_one_is_for_these(policy, space, message):
    with pytest.raises(EnvError, match=f"^{message}"):
        RecurrentPPO(policy, Shows(space))


def test_who_brings_a_features_extractor_or_images_of_fractions_is_not_stopped():
    fractions = spaces.Box(0, 1, (1, 36, 36), np.float32)
    kwargs = dict(normalize_images=False, d_model=8)
    RecurrentPPO("CnnPolicy", Shows(fractions), n_steps=8, policy_kwargs=kwargs, device="cpu")


# Zips


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A zip of Stable-Baselines3's PPO, and one of its policy alone."""
    folder = tmp_path_factory.mktemp("theirs")
    agent = PPO("MlpPolicy", vector(Noise, 1), n_steps=8, batch_size=8, device="cpu")
    agent.save(folder / "agent")
    agent.policy.save(folder / "policy.zip")
    return folder


def test_a_zip_of_another_library_is_refused_before_anything_in_it_is_unpickled(theirs, monkeypatch):
    monkeypatch.setattr("stable_baselines3.common.base_class.load_from_zip_file", lambda *_, **__: pytest.fail("read"))
    message = "agent: holds a policy of stable_baselines3.common.policies, whose network is another one, and cannot be"
    with pytest.raises(CheckpointError, match=message) as caught:
        RecurrentPPO.load(theirs / "agent")
    assert "\n" not in str(caught.value)


def test_a_zip_of_sb3_contrib_is_refused_where_that_is_not_installed(tmp_path):
    module = "sb3_contrib.common.recurrent.policies"
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gAR9lC4=", "__module__": module}}))
        archive.writestr("policy.pth", b"")
    with pytest.raises(CheckpointError, match=rf"holds a policy of {module}, .*docs/from_sb3_contrib.md says how"):
        RecurrentPPO.load(tmp_path / "agent.zip")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is no zip file of RecurrentPPO, or a damaged one"),
        ({"a.txt": "x"}, "holds no agent of RecurrentPPO"),
        ({"data": "[", "policy.pth": ""}, "does not say whose policy it holds"),
        ({"data": '{"policy_class": 3}', "policy.pth": ""}, "does not say whose policy it holds"),
    ],
)
def test_a_file_that_is_no_agent_is_one_line(files, message, tmp_path):
    path = tmp_path / "agent.zip"
    if files is None:
        path.write_text("hello")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    with pytest.raises(CheckpointError, match=f"{path}: {message}"):
        RecurrentPPO.load(path)


def test_a_policy_by_itself_is_told_from_an_agent(theirs):
    with pytest.raises(CheckpointError, match="a policy that was saved by itself is loaded by its class"):
        RecurrentPPO.load(theirs / "policy.zip")
    with pytest.raises(FileNotFoundError):
        RecurrentPPO.load(theirs / "none")


def test_an_open_file_is_loaded_as_a_path_is():
    agent = make_ppo(vector(Noise, 1))
    file = io.BytesIO()
    agent.save(file)
    file.seek(0)
    rows = np.zeros((2, 3), np.float32)
    loaded = RecurrentPPO.load(file, device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(rows, deterministic=True)[0], agent.predict(rows, deterministic=True)[0]
    )


# What predict is given


def test_an_agent_that_learned_under_masks_says_when_it_is_given_none(tmp_path):
    env = DummyVecEnv([lambda: MaskedNoise(action="discrete")])
    agent = make_ppo(env, n_steps=8, n_epochs=1).learn(8)
    agent.save(tmp_path / "agent")
    for one in (agent, RecurrentPPO.load(tmp_path / "agent", device="cpu")):
        with pytest.warns(UserWarning, match=r"predict was given none: pass action_masks=, .*MaskedPredictor"):
            one.predict(env.reset())
        one.predict(env.reset(), action_masks=np.ones((1, 3), bool))
        evaluate_policy(MaskedPredictor(one, env), env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("memory", [{}, {"reset_on_done": False}])
@pytest.mark.parametrize("start", [np.ones(2, bool), np.zeros(4, bool), True, np.ones((3, 1), bool)])
def test_an_episode_start_of_the_wrong_length_is_refused_whatever_it_says(start, memory):
    agent = make_ppo(vector(Noise), **memory)
    observation = agent.env.reset()
    for state in (None, agent.predict(observation)[1]):
        with pytest.raises(ValueError, match=r"episode_start is of .+, the observation of 3"):
            agent.predict(observation, state, start)
