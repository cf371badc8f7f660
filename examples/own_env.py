"""Recurrent PPO in an environment of your own, which cannot be solved without memory.

python examples/own_env.py              about a minute; STEPS=1024 before it is a shorter try

The same by the command, in this folder:  unroll train --agent ppo --env own_env:Lamp-v0 --steps 40000
"""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from unroll.agents import RecurrentPPO
from unroll.envs import make_vec_env

STEPS = int(os.environ.get("STEPS", "40000"))


class Lamp(gym.Env):
    """A lamp is lit on the left or on the right, once. Some dark steps later a bell rings: turn to where it was."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, dark: int = 8):
        self.dark = dark

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        self.t = 0
        return np.array([2 * self.side - 1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        bell = self.t == self.dark
        over = self.t > self.dark
        reward = 0.0
        if over:
            reward = 1.0 if action == self.side else -1.0
        return np.array([0, bell], np.float32), reward, over, False, {}

    # With these two a run that is stopped goes on in the middle of its episodes, to the same bits.
    def save_state(self):
        return {"side": self.side, "t": self.t, "random": self.np_random.bit_generator.state}

    def load_state(self, state):
        self.side = state["side"]
        self.t = state["t"]
        self.np_random.bit_generator.state = state["random"]


gym.register("Lamp-v0", Lamp)

if __name__ == "__main__":
    env = make_vec_env("Lamp-v0", n_envs=16)
    agent = RecurrentPPO("MlpPolicy", env, backbone="mingru", n_steps=32, learning_rate=1e-3, ent_coef=0.01, seed=0)
    agent.learn(STEPS)
    Path("runs/examples").mkdir(parents=True, exist_ok=True)
    agent.save("runs/examples/lamp.zip")

    achieved, _ = evaluate_policy(agent, make_vec_env("Lamp-v0", n_envs=4, seed=100), n_eval_episodes=40)
    print(f"return after {agent.num_timesteps} steps: {achieved:.2f} (1: always right; 0: by chance)")
