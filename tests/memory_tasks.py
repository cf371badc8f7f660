"""Environments for the tests of RecurrentPPO: short episodes that end in both ways, of any spaces."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from unroll.agents import RecurrentPPO

OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3)),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict of images": spaces.Dict(
        view=spaces.Box(0, 255, (36, 36, 1), np.uint8), a=spaces.Box(-1, 1, (2,), np.float32)
    ),
}
ACTIONS = {
    "box": spaces.Box(-2, 1, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
}


class Noise(gym.Env):
    """Observations are noise; an episode terminates or is truncated at any step, one in seven each."""

    def __init__(self, observation: str = "box", action: str = "box"):
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        end = self.np_random.integers(7)
        return self.observation_space.sample(), float(self.np_random.normal()), end == 0, end == 1, {}


class MaskedNoise(Noise):
    """Forbids actions at random, and refuses to be given one of them."""

    def action_masks(self) -> np.ndarray:
        space = self.action_space
        sizes = {"Discrete": [3], "MultiDiscrete": [2, 3], "MultiBinary": [2, 2, 2]}[type(space).__name__]
        parts = [self.np_random.random(size) < 0.5 for size in sizes]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self.allowed = parts
        return np.concatenate(parts)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        chosen = np.atleast_1d(action)
        assert all(part[int(i)] for part, i in zip(self.allowed, chosen, strict=True)), "an action that was forbidden"
        return super().step(action)


class Scripted(gym.Env):
    """Observes the step's number; pays the step's number; ends as it is told: {step: "terminated" | "truncated"}."""

    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, ends: dict[int, str]):
        self.ends, self.steps = ends, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.array([self.steps], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        end = self.ends.get(self.steps)
        observation = np.array([self.steps + 0.5], np.float32)  # at an end: seen by no other episode
        return observation, float(self.steps), end == "terminated", end == "truncated", {}


class Recall(gym.Env):
    """Shows one of two cues in the first of ``length`` steps; the last action is paid if it names the cue. Without a
    memory the return is 0.5."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 4):
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        over = self.t == self.length
        return np.array([0, 1], np.float32), float(over and action == self.cue), over, False, {}


def vector(make: Any, n_envs: int = 3) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(make())] * n_envs)


def make_ppo(env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> RecurrentPPO:
    """A small agent; arguments of the policy's memory may be given among its own."""
    memory = ("d_model", "n_layers", "backbone_options", "reset_on_done", "separate_critic", "share_features_extractor")
    own = {key: kwargs.pop(key) for key in (*memory, "net_arch", "activation_fn") if key in kwargs}
    sizes: dict[str, Any] = dict(n_steps=16, n_epochs=2, seed=0, device="cpu") | kwargs
    return RecurrentPPO(policy, env, policy_kwargs=dict(d_model=16, n_layers=2, net_arch=[16]) | own, **sizes)


class RatioErrors(BaseCallback):
    """What every update logs, one rollout later."""

    def _on_training_start(self):
        self.logged = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if self.model._n_updates:
            self.logged.append(self.logger.name_to_value["train/first_ratio_error"])


def rollout(agent, updates=2):
    """Sequences of a rollout after some updates of the policy, which begins in the middle of episodes, and the ratio
    errors of those updates."""
    callback = RatioErrors()
    agent.learn(updates * agent.n_steps * agent.n_envs, callback, log_interval=None)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
    assert len(callback.logged) == updates
    return agent._sequences(), callback.logged
