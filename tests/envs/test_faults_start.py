"""Discrete actions that are not counted from 0: learned as 0 … n - 1, played and recorded as the environment's own."""

import dataclasses
import json
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from toy import TINY
from unroll.agents import DecisionAgent
from unroll.agents.evaluation.play import Episode, play
from unroll.commands import evaluate, export, record, train
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5, write_minari
from unroll.envs.make import make_env
from unroll.envs.wrappers import NoisyActions, ReturnToGo
from unroll.errors import DatasetError
from unroll.policies.actions import build_space, describe_space

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
LENGTH = 12
RUN = [*TINY, "--backbone.d_model", "32", "--context", "12", "--batch_size", "32", "--warmup_steps", "20"]
RUN += ["--steps", "150", "--device", "cpu", "--evaluation.every", "0", "--evaluation.episodes", "3"]
RUN += ["--condition", "best", "--evaluation.targets", "[12]", "--log_every", "50", "--learning_rate", "0.01"]


class Turns(gym.Env):
    """Takes the actions start, start + 1, start + 2; pays 1 for the one that follows the last."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, start=1, n=3, render_mode=None):
        self.action_space = gym.spaces.Discrete(n, start=start)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last = -1
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"I am given {action}"
        choice = int(action - self.action_space.start)
        reward = float(choice == (self.last + 1) % 3)
        self.last = choice
        return np.zeros(2, np.float32), reward, False, False, {}


NAMES = {"From1": {"start": 1}, "FromMinus": {"start": -1}, "From0": {"start": 0}, "Four": {"start": 0, "n": 4}}
for name, kwargs in NAMES.items():
    if f"UnrollTest{name}-v0" not in gym.registry:
        gym.register(f"UnrollTest{name}-v0", Turns, max_episode_steps=LENGTH, kwargs=kwargs)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def turns(n=60):
    """Choices of episodes in which some turn round well and others make mistakes, [n, LENGTH], and their rewards."""
    random = np.random.default_rng(0)
    choices = np.zeros((n, LENGTH), int)
    for e in range(n):
        skill = random.uniform(0.5, 1)
        last = -1
        for t in range(LENGTH):
            choices[e, t] = (last + 1) % 3 if random.uniform() < skill else random.integers(3)
            last = choices[e, t]
    before = np.concatenate([np.full((n, 1), -1), choices[:, :-1]], 1)
    return choices, (choices == (before + 1) % 3).astype(np.float32)


def write_file(path, actions, rewards, env=None):
    n = actions.size
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((n, 2), np.float32)
        file["actions"] = actions.reshape(-1)
        file["rewards"] = rewards.reshape(-1)
        file["terminals"] = np.zeros(n, bool)
        file["timeouts"] = np.arange(1, n + 1) % LENGTH == 0
        if env:
            file.attrs["env"] = env


def write_set(name, actions, rewards, space, env=None):
    buffers = []
    for e in range(len(actions)):
        ends = np.arange(1, LENGTH + 1) == LENGTH
        buffer = EpisodeBuffer(
            id=e,
            observations=np.zeros((LENGTH + 1, 2), np.float32),
            actions=actions[e],
            rewards=rewards[e],
            terminations=np.zeros(LENGTH, bool),
            truncations=ends,
        )
        buffers.append(buffer)
    spaces = {"observation_space": Turns.observation_space, "action_space": space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(name, buffers, **spaces, **ABOUT)
    if env:
        path = Path(minari.storage.get_dataset_path(name)) / "data" / "metadata.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"env_spec": json.dumps({"id": env, "additional_wrappers": []})})
        )


def score(run):
    return json.loads(Path(run, "evaluation.json").read_text())["results"][0]["return_mean"]


@pytest.mark.parametrize(("name", "start"), [("From1", 1), ("FromMinus", -1)])
@pytest.mark.parametrize("kind", ["file", "minari"])
def test_a_set_of_other_actions_is_learned_and_played(name, start, kind, capsys):
    env = f"UnrollTest{name}-v0"
    choices, rewards = turns()
    if kind == "file":
        source = "data.hdf5"
        write_file(source, choices + start, rewards, env)
    else:
        source = "minari:unit/turns-v0"
        write_set("unit/turns-v0", choices + start, rewards, gym.spaces.Discrete(3, start=start), env)
    episodes = load_episodes(source)
    assert episodes.action_space == gym.spaces.Discrete(3, start=start)
    np.testing.assert_array_equal(episodes.actions, choices.reshape(-1))

    assert train.main(["--dataset", source, "--run_dir", "run", *RUN]) == 0
    assert score("run") >= 11
    assert evaluate.main(["run", "--output", "again.json"]) == 0
    capsys.readouterr()


def test_a_file_that_names_no_environment_is_counted_as_the_one_to_evaluate_in(capsys, caplog):
    choices, rewards = turns()
    write_file("data.hdf5", choices + 1, rewards)
    run = ["--dataset", "data.hdf5", "--run_dir", "run", *RUN]
    assert train.main([*run, "--evaluation.env", "UnrollTestFrom1-v0"]) == 0
    assert "discrete actions from 1 to 3, and no environment that says" in caplog.text
    assert score("run") >= 11
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "152"]) == 0
    assert evaluate.main(["run", "--env", "UnrollTestFrom0-v0"]) == 2
    assert "takes actions of Discrete(3), the policy was trained on Discrete(3, start=1)" in capsys.readouterr().err


def test_more_actions_than_the_environment_has_are_refused_before_the_training(monkeypatch, capsys):
    write_file("data.hdf5", np.random.default_rng(0).integers(0, 6, (20, LENGTH)), np.ones((20, LENGTH)))
    monkeypatch.setattr(DecisionAgent, "learn", lambda *_, **__: pytest.fail("it began"))
    assert (
        train.main(["--dataset", "data.hdf5", "--run_dir", "run", *RUN, "--evaluation.env", "UnrollTestFrom0-v0"]) == 2
    )
    error = capsys.readouterr().err.strip()
    assert error.endswith("takes actions of Discrete(3), the policy was trained on Discrete(6)")
    assert len(error.splitlines()) == 1


def test_fewer_actions_than_the_environment_has_are_counted_as_its_own(capsys):
    """The action that stands for none is the last of the environment's, and must be known to the policy."""
    choices, rewards = turns(10)
    write_file("data.hdf5", choices, rewards)
    run = ["--dataset", "data.hdf5", "--run_dir", "run", *RUN, "--steps", "2"]
    assert train.main([*run, "--evaluation.env", "UnrollTestFour-v0"]) == 0
    assert DecisionAgent.load("run").policy.config["action_space"]["n"] == 4
    write_set("unit/turns-v0", choices, rewards, gym.spaces.Discrete(3), "UnrollTestFour-v0")
    assert load_episodes("minari:unit/turns-v0").action_space == gym.spaces.Discrete(4)


def test_actions_outside_of_a_named_environments_are_refused_by_their_own_names():
    choices, rewards = turns(10)
    write_file("data.hdf5", choices, rewards, "UnrollTestFrom1-v0")  # 0, 1, 2 where 1, 2, 3 are taken
    with pytest.raises(DatasetError, match=r"actions lies outside of Discrete\(3, start=1\) in \d+ rows"):
        load_episodes("data.hdf5")


@pytest.mark.parametrize("start", [0, 1, -1])
def test_what_is_written_comes_back(start):
    env = {0: "UnrollTestFrom0-v0", 1: "UnrollTestFrom1-v0", -1: "UnrollTestFromMinus-v0"}[start]
    choices, rewards = turns(10)
    write_file("data.hdf5", choices + start, rewards, env)
    episodes = load_episodes("data.hdf5")
    write_hdf5(episodes, "again.hdf5")
    write_minari(without_env(episodes), "unit/again-v0", **ABOUT)
    with h5py.File("again.hdf5") as file:
        np.testing.assert_array_equal(file["actions"][:], choices.reshape(-1) + start)
    for source in ("again.hdf5", "minari:unit/again-v0"):
        again = load_episodes(source)
        assert again.action_space == gym.spaces.Discrete(3, start=start), source
        np.testing.assert_array_equal(again.actions, choices.reshape(-1))


def without_env(episodes):
    final = np.zeros((len(episodes), 2), np.float32)
    return dataclasses.replace(episodes, env_id=None, final_observations=final)


def test_an_export_gives_the_environments_action_and_a_recording_holds_it(capsys):
    pytest.importorskip("onnxruntime")
    from unroll.export.play import play as play_export
    from unroll.export.runner import Policy

    choices, rewards = turns()
    write_file("data.hdf5", choices + 1, rewards, "UnrollTestFrom1-v0")
    assert train.main(["--dataset", "data.hdf5", "--run_dir", "run", *RUN]) == 0
    assert export.main(["run"]) == 0
    env = gym.make("UnrollTestFrom1-v0")
    assert play_export(Policy("run/onnx"), env, 12.0, seed=1_000_000) == score("run") >= 11

    assert record.main(["--run", "run", "--episodes", "4", "--noise", "0.3", "--output", "played.hdf5"]) == 0
    with h5py.File("played.hdf5") as file:
        assert set(np.unique(file["actions"])) == {1, 2, 3}
    capsys.readouterr()


def test_noise_draws_the_environments_actions():
    env = NoisyActions(gym.make("UnrollTestFromMinus-v0"), noise=1.0)
    assert {int(env.action(np.int64(0))) for _ in range(60)} == {-1, 0, 1}


def test_a_space_with_a_start_survives_a_checkpoint_and_one_without_is_as_before():
    assert describe_space(gym.spaces.Discrete(3)) == {"type": "Discrete", "n": 3}
    for space in (gym.spaces.Discrete(3), gym.spaces.Discrete(3, start=-1)):
        assert build_space(json.loads(json.dumps(describe_space(space)))) == space


def test_an_agent_acts_by_its_data_in_an_environment_of_another_start(tmp_path):
    """The same data, counted from 0 and from 1, give the same agent."""
    totals = []
    for start, env in ((0, "UnrollTestFrom0-v0"), (1, "UnrollTestFrom1-v0")):
        choices, rewards = turns()
        write_file("data.hdf5", choices + start, rewards, env)
        agent = DecisionAgent(load_episodes("data.hdf5"), context=6, device="cpu", policy_kwargs=dict(d_model=16))
        agent.learn(20)
        episodes = [Episode(seed, 6.0) for seed in range(3)]
        play(agent, lambda env=env: ReturnToGo(make_env(env)), episodes)
        totals.append([episode.total for episode in episodes])
    assert totals[0] == totals[1]
