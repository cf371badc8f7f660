"""Choices that do not begin at 0: the environment is given its own numbers, the policy counts from 0."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import make_ppo, vector
from ppo_runs import agent_of
from unroll.agents.evaluation.play import Episode, play
from unroll.agents.ppo.player import ppo_player
from unroll.agents.ppo.step import ActorStep
from unroll.envs.wrappers import NoisyActions, PreviousStep
from unroll.export.check import difference
from unroll.policies.choices import as_counted_by_policy

SPACES = {
    "one": spaces.Discrete(3, start=-1),
    "later": spaces.Discrete(3, start=4),
    "several": spaces.MultiDiscrete([3, 2], start=[-1, 5]),
}


class Paid(gym.Env):
    """Pays the number of the action, of several their sum, and refuses one that is not in its space."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action="one", masked=False):
        self.action_space = SPACES[action]
        self.given = set()
        if masked:
            self.action_masks = lambda: np.array([True, False, False])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"was given {action!r}"
        self.given.add(tuple(np.atleast_1d(action).tolist()))
        self.t += 1
        return np.zeros(2, np.float32), float(np.sum(action)), self.t == 8, False, {}


class Shown(Paid):
    """Shows a number of a space that does not begin at 0, beside an image: the two are not made one row."""

    def __init__(self, observation=SPACES["one"]):
        super().__init__()
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = spaces.Dict(image=image, number=observation)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), *super().step(action)[1:]


for name, kwargs in (("One", {}), ("Later", {"action": "later"}), ("Several", {"action": "several"})):
    if f"Start{name}-v0" not in gym.registry:
        gym.register(f"Start{name}-v0", Paid, kwargs=kwargs)
if "StartShown-v0" not in gym.registry:
    gym.register("StartShown-v0", Shown)


@pytest.mark.parametrize("action", SPACES)
def test_every_choice_of_the_environment_is_tried_and_no_other(action):
    env = DummyVecEnv([lambda: Paid(action)])
    agent = make_ppo(env, n_steps=128, n_epochs=1).learn(128)
    space = SPACES[action]
    first = np.atleast_1d(space.start)
    last = first + (space.nvec if action == "several" else space.n)
    wanted = np.stack(np.meshgrid(*map(np.arange, first, last), indexing="ij"), -1).reshape(-1, len(first))
    assert env.envs[0].given == {tuple(row) for row in wanted.tolist()}
    assert agent.rollout_buffer.actions.min() == 0  # the policy's own count


def test_the_highest_choice_is_learned():
    agent = make_ppo(vector(Paid, 4), n_steps=32, learning_rate=0.01).learn(4 * 32 * 8)
    assert (agent.predict(np.zeros((5, 2), np.float32), deterministic=True)[0] == 1).all()


@pytest.mark.parametrize("env_id", ["StartOne-v0", "StartLater-v0", "StartSeveral-v0"])
def test_an_evaluation_and_an_export_act_in_the_environments_numbers(env_id):
    agent, config = agent_of("--env", env_id)
    player = ppo_player(agent, config, ablation=False)
    episode = Episode(seed=0)
    play(player.agent, player.make_env, [episode], deterministic=False)
    assert episode.length == 8

    step = ActorStep(agent.policy, agent.env.unwrapped.observation_space)
    rows = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    state = [port.zeros(4) for port in step.state]
    chosen = step(torch.from_numpy(rows), torch.ones(4, dtype=torch.bool), *state)[0]
    np.testing.assert_array_equal(chosen, agent.predict(rows, deterministic=True)[0])
    assert all(agent.action_space.contains(row) for row in chosen.numpy())


def test_the_previous_action_is_shown_as_the_policy_counts():
    agent, _ = agent_of("--env", "StartOne-v0", "--previous_action", "true")
    seen = agent.rollout_buffer.observations[1:, :, 2:].argmax(-1)
    done = agent.rollout_buffer.actions[:-1, :, 0]
    inside = agent.rollout_buffer.episode_starts[1:] == 0
    np.testing.assert_array_equal(seen[inside], done[inside])
    assert (seen[~inside] == 3).all()  # none yet
    env = PreviousStep(Paid(), reward=False)
    env.reset(seed=0)
    assert env.step(np.int64(-1))[0]["previous_action"] == 0


def test_a_masked_choice_is_the_one_at_the_masks_place():
    agent = make_ppo(DummyVecEnv([lambda: Paid(masked=True)]), n_steps=16).learn(16)
    assert agent.env.envs[0].given == {(-1,)}


@pytest.mark.parametrize(("masked", "expected"), [(False, {(-1,), (0,), (1,)}), (True, {(-1,)})])
def test_noise_is_an_action_of_the_environment(masked, expected):
    env = Paid(masked=masked)
    noisy = NoisyActions(env, 1.0)
    noisy.reset(seed=0)
    for _ in range(40):
        noisy.step(np.int64(0))
    assert env.given == expected


@pytest.mark.parametrize("number", [SPACES["one"], SPACES["several"]])
def test_an_observed_choice_beside_an_image_is_counted_from_zero_and_exported_so(number):
    agent = make_ppo(DummyVecEnv([lambda: Shown(number)]), "MultiInputPolicy", n_steps=16, n_epochs=1).learn(16)
    seen = {"number": torch.as_tensor(np.stack([number.sample() for _ in range(50)]))}
    counted = as_counted_by_policy(seen, spaces.Dict(number=number))["number"].reshape(50, -1)
    assert counted.amin(0).eq(0).all()
    step = ActorStep(agent.policy, agent.env.unwrapped.observation_space)
    random = torch.Generator().manual_seed(0)
    for port in step.shown:
        values = port.random(20, random)
        if port.name == "observation.number":
            assert all(number.contains(row) for row in values.numpy())


def test_an_export_for_observed_choices_is_checked_within_their_space(tmp_path):
    agent, _ = agent_of("--env", "StartShown-v0")
    step = ActorStep(agent.policy, agent.env.unwrapped.observation_space)

    def run(inputs):
        return [part.detach().numpy() for part in step(*(torch.from_numpy(value) for value in inputs.values()))]

    assert difference(step, run) < 1e-6
