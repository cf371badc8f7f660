"""Environments of tensors for tests: noise whose episodes end in both ways, and one that does what it is told."""

import numpy as np
import torch
from gymnasium import spaces

from unroll.envs.tensor import TensorEnv

ACTIONS = {
    "box": spaces.Box(-0.5, np.array([0.2, 0.4], np.float32), (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
}


class TensorNoise(TensorEnv):
    """Noise, to which the action is added in the reward. One step in nine ends an episode, in either way."""

    def __init__(self, num_envs=3, action="discrete", device="cpu", shows_last=True):
        super().__init__(num_envs, spaces.Box(-9, 9, (3,), np.float32), ACTIONS[action], device)
        self.generator = torch.Generator(device)
        self.shows_last = shows_last

    def noise(self):
        return torch.randn(self.num_envs, 3, generator=self.generator, device=self.device)

    def reset(self, *, seed=None, options=None):
        self.generator.manual_seed(seed or 0)
        return self.noise(), {}

    def step(self, actions):
        actions = torch.as_tensor(actions).double()
        if self.single_action_space.shape:
            low = torch.as_tensor(getattr(self.single_action_space, "low", 0))
            assert (actions >= low).all(), "an action is out of bounds"
            actions = actions.sum(1)
        end = torch.randint(18, (self.num_envs,), generator=self.generator)
        terminated = end == 0
        truncated = end <= 1  # one that is both is no truncation
        rewards = 3 * self.noise()[:, 0] + actions
        info = {"final_obs": self.noise()} if self.shows_last else {}
        return self.noise(), rewards, terminated, truncated, info

    def save_state(self):
        return {"generator": self.generator.get_state()}

    def load_state(self, state):
        self.generator.set_state(state["generator"])


class Told(TensorEnv):
    """Two environments that show the step and pay 1, but for what ``faults`` says: {step: (what, number)}.

    Every observation is written into the same tensor. Episodes have 5 steps, the last one truncated.
    """

    def __init__(self, faults=None):
        super().__init__(2, spaces.Box(-9, 9, (1,), np.float32), spaces.Discrete(2))
        self.faults = faults or {}
        self.shown = torch.zeros(2, 1)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        self.steps = getattr(self, "steps", torch.zeros(2))
        self.steps.zero_()  # what a step made is written into
        return self.shown.zero_(), {}

    def step(self, actions):
        self.t += 1
        self.steps = self.steps + 1
        rewards = torch.ones(2)
        last = torch.full((2, 1), float(self.t % 5 or 5))
        self.shown[:] = self.t % 5
        what, number = self.faults.get(self.t, ("", 0.0))
        wrong = {"observation": self.shown, "reward": rewards, "last": last}
        if what:
            wrong[what][1] = number
        over = torch.full((2,), self.t % 5 == 0)
        return self.shown, rewards, torch.zeros(2, dtype=torch.bool), over, {"final_obs": last}
