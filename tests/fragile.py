"""An environment that dies or fails when it is told to, in a module that its process can import."""

import os
import signal
import time

import gymnasium as gym
import numpy as np

from toy import Toy


class Fragile(Toy):
    """Action 0 lives on; 1 exits with code 3, 2 is a kill -9, 3 raises, 4 never comes back. Observations are more exact
    than its space."""

    def __init__(self):
        super().__init__(discrete=True)
        self.action_space = gym.spaces.Discrete(5)

    def step(self, action):
        if action == 1:
            os._exit(3)
        if action == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 3:
            raise ValueError("the arm\nbroke")
        if action == 4:
            time.sleep(1000)
        return super().step(0)

    def _observation(self):
        return np.array([self.t, self.np_random.normal()])

    def action_masks(self):
        return np.arange(5) == 0


class Unmakeable(Fragile):
    def __init__(self):
        raise RuntimeError("no display")


class Mortal(Toy):
    """Dies in its third episode."""

    episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        if self.episodes == 3:
            os._exit(3)
        return super().reset(**kwargs)


for name, cls in (("Fragile-v0", Fragile), ("Unmakeable-v0", Unmakeable), ("Mortal-v0", Mortal)):
    if name not in gym.registry:
        gym.register(name, cls, disable_env_checker=True)
