"""Environments that fail, or of which few can be open, in a module that their processes can import."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from toy import Toy


class Simple(gym.Env):
    """Shows noise and pays 1 in each of eight steps."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    length = 8

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        return self._observe(), 1.0, self.t == self.length, False, {}

    def _observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Raises(Simple):
    """A simulator that loses its connection in its step number ``at``, of all episodes together."""

    def __init__(self, at=10**9, seed_at=None):
        self.at = at
        self.seed_at = seed_at  # an evaluation resets with seeds
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        if self.seed_at is not None and seed is not None and seed >= self.seed_at:
            raise KeyError("scene")
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            raise ConnectionError("simulator at port 4242\ndoes not answer")
        return super().step(action)


class Savable(Raises):
    """The same, whose state can be saved. It does not fail again in a process that goes on."""

    def save_state(self):
        return {"t": self.t, "random": self.np_random.bit_generator.state["state"]}

    def load_state(self, state):
        self.t = state["t"]
        generator = self.np_random.bit_generator
        generator.state = generator.state | {"state": state["random"]}


class Few(Simple):
    """A simulator of which ``limit`` can be open."""

    opened = 0

    def __init__(self, limit=1):
        self.is_open = False
        if Few.opened == limit:
            raise RuntimeError(f"port 4242 is in use by {limit}")
        Few.opened += 1
        self.is_open = True

    def close(self):
        Few.opened -= self.is_open
        self.is_open = False


class Endless(Simple):
    """A control task that goes on for ever, registered without a limit."""

    length = None


class Odd(Simple):
    """An episode with a seed, as an evaluation has them, pays this or shows this in its third step."""

    def __init__(self, reward=1.0, observation=None):
        self.reward = reward
        self.shown = observation

    def reset(self, *, seed=None, options=None):
        self.is_played = seed is not None and seed >= 1_000_000
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.is_played and self.t == 3:
            reward = self.reward
            if self.shown is not None:
                observation[:] = self.shown
        return observation, reward, *rest


class FewToys(Toy):
    """The toy of decision agents, of which one can be open."""

    opened = 0

    def __init__(self, **kwargs):
        self.is_open = False
        if FewToys.opened:
            raise RuntimeError("one licence")
        super().__init__(**kwargs)
        FewToys.opened += 1
        self.is_open = True

    def close(self):
        FewToys.opened -= self.is_open
        self.is_open = False


class RaisingToy(Toy):
    """The toy of decision agents, which fails in its ninth step."""

    def step(self, action):
        if self.t == 8:
            raise KeyError
        return super().step(action)


class EndlessToy(Toy):
    """The toy of decision agents without an end."""

    def step(self, action):
        return *super().step(action)[:3], False, {}


for cls in (Simple, Raises, Savable, Few, Endless, Odd, FewToys, RaisingToy, EndlessToy):
    name = f"Fault{cls.__name__}-v0"
    if name not in gym.registry:
        gym.register(name, cls, disable_env_checker=True)
