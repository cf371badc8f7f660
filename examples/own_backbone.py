"""A backbone of your own: written, put under the laws, and trained.

python examples/own_backbone.py         about a minute; STEPS=1024 before it is a shorter try

The same by the commands, in this folder:
    unroll backbones own_backbone:Traces
    unroll train --config ppo/cartpole_masked --backbone.name own_backbone:Traces --backbone.options.longest 50
"""

import math
import os

import torch
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from unroll.agents import RecurrentPPO
from unroll.envs import make_vec_env
from unroll.policies.backbones import Mixer
from unroll.policies.backbones.scan import linear_scan
from unroll.testing import check_backbone

STEPS = int(os.environ.get("STEPS", "40000"))


class Traces(Mixer):
    """Moving averages of the input, with half-lives from one step to ``longest``. The state is [B, d_model]."""

    def __init__(self, d_model: int, longest: float = 100.0):
        super().__init__()
        half_lives = torch.logspace(0, math.log10(longest), d_model)
        self.register_buffer("keep", 0.5 ** (1 / half_lives))
        self.input = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def initial_state(self, batch_size):
        return self.keep.new_zeros(batch_size, len(self.keep))

    def forward(self, x, state=None, reset=None):
        """x [B, T, d_model]; where reset [B, T] is true, the averages start from 0 before that step."""
        x = self.input(x)
        keep = self.keep.expand_as(x)
        averages = linear_scan(keep, (1 - keep) * x, state, reset)
        return self.out(averages), averages[:, -1]


if __name__ == "__main__":
    # Steps are the sequence, an episode is blind to the one before, no future leaks, and ten more.
    check_backbone(Traces)
    print("every law holds")

    # CartPole without velocities: 500 is possible, about 44 without memory.
    env = make_vec_env("CartPoleNoVel-v1", n_envs=8)
    backbone = f"{__name__}:Traces"
    settings = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8}
    agent = RecurrentPPO("MlpPolicy", env, backbone=backbone, learning_rate=1e-3, seed=0, **settings)
    agent.learn(STEPS)
    achieved, _ = evaluate_policy(agent, make_vec_env("CartPoleNoVel-v1", n_envs=4, seed=100), n_eval_episodes=20)
    print(f"return after {agent.num_timesteps} steps: {achieved:.0f} (without memory: about 44)")
