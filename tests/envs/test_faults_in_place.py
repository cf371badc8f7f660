"""Environments that keep one array and change it: nothing that outlives a step may be that array."""

import gymnasium as gym
import h5py
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from unroll.agents import RecurrentPPO
from unroll.agents.evaluation.play import Episode, play
from unroll.commands import record
from unroll.envs import make_vec_env
from unroll.envs.datasets.recording import Recorder
from unroll.envs.make import make_env
from unroll.envs.wrappers import PreviousStep, ReturnToGo
from unroll.export.play import play as play_export

STEPS = 6


class InPlace(gym.Env):
    """Counts its steps in one array, and empties the action that it was given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.seen = np.zeros(2, np.float32)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen[:] = 0
        return self.seen, {}

    def step(self, action):
        self.seen += 1
        reward = float(np.sum(action))
        action[...] = 9
        return self.seen, reward, False, bool(self.seen[0] == STEPS), {}


if "UnrollTestInPlace-v0" not in gym.registry:
    gym.register("UnrollTestInPlace-v0", InPlace, disable_env_checker=True)


class Half:
    """Always does a half, and keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.shown.append(observation)
        return np.full((len(observation["observation"]), 2), 0.5, np.float32), None


def test_a_recorder_keeps_what_was_seen_and_done():
    done = []
    env = Recorder(InPlace(), done)
    env.reset()
    for _ in range(STEPS):
        env.step(np.full(2, 0.5, np.float32))
    (episode,) = done
    assert episode.observations[:, 0].tolist() == list(range(STEPS))
    assert episode.final_observation.tolist() == [STEPS, STEPS]
    assert (episode.actions == 0.5).all()


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_recording_holds_every_step_of_an_episode(algorithm, tmp_path, capsys):
    path = tmp_path / "x.hdf5"
    steps = ["--steps", "120", "--output", str(path)]
    assert record.main(["--algorithm", algorithm, "--env", "UnrollTestInPlace-v0", *steps]) == 0
    with h5py.File(path) as file:
        assert file["observations"][:STEPS, 0].tolist() == list(range(STEPS))
        assert (file["final_observations"][:, 0] == STEPS).all()
        assert (np.abs(file["actions"]) <= 1).all()
    capsys.readouterr()


@pytest.mark.parametrize("wrapper", [PreviousStep, ReturnToGo])
def test_wrappers_show_arrays_of_their_own(wrapper):
    env = wrapper(InPlace())
    shown = [env.reset()[0]]
    shown += [env.step(np.full(2, 0.5, np.float32))[0] for _ in range(3)]
    assert [one["observation"][0] for one in shown] == [0, 1, 2, 3]
    assert [one["previous_action"][0] for one in shown] == [0, 0.5, 0.5, 0.5]


def test_a_vector_keeps_the_terminal_observation_through_the_reset():
    vector = make_vec_env("UnrollTestInPlace-v0", 2)
    vector.reset()
    for _ in range(STEPS):
        observations, _, _, infos = vector.step(np.zeros((2, 2), np.float32))
    assert [info["terminal_observation"].tolist() for info in infos] == [[STEPS, STEPS]] * 2
    assert (observations == 0).all()
    vector.close()


def test_an_evaluation_acts_on_what_each_environment_shows():
    """The environments share one array, so that what the first one gave is changed by the second one's step."""
    shared = np.zeros(2, np.float32)
    made = []

    class Shared(InPlace):
        def __init__(self):
            super().__init__()
            self.number = len(made)
            self.steps = 0
            made.append(self)

        def reset(self, *, seed=None, options=None):
            shared[:] = 100 * self.number
            return shared, {}

        def step(self, action):
            self.steps += 1
            shared[:] = 100 * self.number + self.steps
            return shared, 0.0, False, self.steps == STEPS, {}

    class Plain(gym.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = gym.spaces.Dict(observation=env.observation_space)

        def reset(self, **kwargs):
            observation, info = self.env.reset(**kwargs)
            return {"observation": observation}, info

        def step(self, action):
            observation, *rest = self.env.step(action)
            return {"observation": observation}, *rest

    agent = Half()
    play(agent, lambda: Plain(Shared()), [Episode(0), Episode(1)])
    assert [shown["observation"][:, 0].tolist() for shown in agent.shown] == [[t, 100 + t] for t in range(STEPS)]


def test_a_rollout_holds_what_was_seen_whoever_wrote_the_vector():
    class OneBuffer(DummyVecEnv):
        """Gives one array, and changes it in the next step, as simulators on a GPU do."""

        def _obs_from_buf(self):
            return self.buf_obs[None]

    vector = OneBuffer([lambda: make_env("UnrollTestInPlace-v0")])
    agent = RecurrentPPO("MlpPolicy", vector, n_steps=STEPS, device="cpu", policy_kwargs=dict(d_model=4, net_arch=[4]))
    agent.learn(STEPS)
    assert agent.rollout_buffer.observations.reshape(STEPS, 2)[:, 0].tolist() == list(range(STEPS))


def test_who_listens_to_an_exported_policy_hears_every_step():
    class Exported:
        def __init__(self):
            self.about = {"first_action": [0.0, 0.0], "keeps_memory": False}
            self.state = {}
            self.zeros = {"observation": None, "previous_action": None}

        def __call__(self, row):
            return np.full((1, 2), 0.5, np.float32)

    heard = []
    total = play_export(Exported(), InPlace(), on_step=lambda row, action: heard.append((row, action)))
    assert total == STEPS
    assert [row["observation"][0, 0] for row, _ in heard] == list(range(STEPS))
    assert [row["previous_action"][0, 0] for row, _ in heard] == [0, *[0.5] * (STEPS - 1)]
    assert all((action == 0.5).all() for _, action in heard)


def test_a_film_is_not_its_last_picture(monkeypatch):
    from unroll.agents.evaluation import video
    from unroll.agents.evaluation.player import Player

    class Drawn(InPlace):
        def render(self):
            self.picture[:] = 40 * int(self.seen[0])
            self.picture[0] = 0
            return self.picture

        picture = np.zeros((8, 8, 3), np.uint8)

    class Plain:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros((len(observation), 2), np.float32), None

    kept = []
    monkeypatch.setattr(video, "make_gif", lambda frames, fps: kept.extend(frames) or b"")
    player = Player(Plain(), "x", lambda **_: Drawn(), lambda env: env, {})
    video.try_gif(player, {"seeds": [0], "results": [{"target_return": None}]}, print)
    assert len({int(frame[1, 0, 0]) for frame in kept}) == len(kept) > 1

    # Of the environment as it is, and no longer than it is played.
    made = []
    kept.clear()
    player = Player(Plain(), "x", lambda **given: made.append(given) or Drawn(), lambda env: env, {}, max_steps=1)
    video.try_gif(player, {"seeds": [0], "results": [{"target_return": None}]}, print)
    assert made == [{"render_mode": "rgb_array"}]
    assert len(kept) == 1
