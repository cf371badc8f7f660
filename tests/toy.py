"""A toy task for the agents' tests: the reward is the action, so the return is what the actions add up to."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from unroll.agents import DecisionAgent
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import SEQUENCE_KEYS, SequenceSampler

LENGTH = 12
SMALL = dict(d_model=16, n_layers=2)


class Toy(gym.Env):
    """Observes the step's number and a constant of the episode; continuous actions pay themselves, discrete ones 0,
    1 or 2."""

    def __init__(self, discrete: bool = False, render_mode: str | None = None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.constant = 0, self.np_random.normal()
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self._observation(), float(np.sum(action)), False, self.t == LENGTH, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.t, self.constant], np.float32)


for name, discrete in (("ToyBox-v0", False), ("ToyDiscrete-v0", True)):
    if name not in gym.registry:
        gym.register(name, Toy, kwargs={"discrete": discrete})


def toy_episodes(n: int = 60, discrete: bool = False, seed: int = 0) -> Episodes:
    """Episodes of mixed skill: each has its own favourite action, with a little noise."""
    random = np.random.default_rng(seed)
    env = Toy(discrete)
    observations, actions, final = [], [], []
    for episode in range(n):
        observation, _ = env.reset(seed=episode)
        skill = random.uniform(-1.5, 1.5)
        for _ in range(LENGTH):
            if discrete:
                action = np.int64(np.clip(round(skill + 1 + random.normal() * 0.3), 0, 2))
            else:
                action = np.clip(skill + random.normal(size=1) * 0.1, -2, 2).astype(np.float32)
            observations.append(observation)
            actions.append(action)
            observation = env.step(action)[0]
        final.append(observation)
    return Episodes(
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=np.array(actions, np.float32).reshape(-1),
        lengths=np.full(n, LENGTH),
        terminated=np.zeros(n, bool),
        truncated=np.ones(n, bool),
        action_space=env.action_space,
        final_observations=np.array(final),
        name="toy",
        env_id="ToyDiscrete-v0" if discrete else "ToyBox-v0",
        reference_returns=(0.0, 24.0),
        reference_name="toy",
    )


def make_agent(episodes=None, context=6, **kwargs):
    policy = SMALL | {
        key: kwargs.pop(key)
        for key in list(kwargs)
        if key in ("backbone", "tokens", "condition", "previous_action", "action_modes", "memory", "dropout")
    }
    return DecisionAgent(
        episodes or toy_episodes(),
        context=context,
        warmup_steps=10,
        batch_size=16,
        device="cpu",
        policy_kwargs=policy,
        **kwargs,
    )


def whole_episode(episodes, index):
    sampler = SequenceSampler(episodes, int(episodes.lengths.max()))
    return sampler.windows(torch.tensor([int(episodes.starts[index])]))


def replay(agent, episodes, index, n_copies=2):
    """What the rollout path predicts along a recorded episode, for a batch of copies of it."""
    steps, state, predictions = whole_episode(episodes, index), None, []
    for t in range(int(episodes.lengths[index])):
        observation = {key: steps[key][0, t].numpy()[None].repeat(n_copies, 0) for key in SEQUENCE_KEYS}
        observation["return_to_go"] = observation["return_to_go"][:, None]
        observation["timestep"] = observation["timestep"][:, None]
        actions, state = agent.predict(observation, state, np.full(n_copies, t == 0))
        predictions.append(actions)
    return np.stack(predictions, 1)


# the arguments of a run that takes no time
TINY = [
    "--backbone.d_model",
    "16",
    "--backbone.n_layers",
    "1",
    "--batch_size",
    "8",
    "--context",
    "6",
    "--log_every",
    "5",
]
