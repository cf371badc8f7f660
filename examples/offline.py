"""Learn from a recorded dataset, then ask the agent for returns.

python examples/offline.py              about a minute; STEPS=50 before it is a shorter try
"""

import os

from stable_baselines3.common.evaluation import evaluate_policy

from unroll.agents import DecisionAgent
from unroll.envs import load_episodes, make_vec_env

STEPS = int(os.environ.get("STEPS", "1000"))

# Episodes of Hopper by agents from untrained to good. minari:ID, d4rl:ID or the path of an HDF5 file work here, too.
episodes = load_episodes("embedded:hopper-v5-replay")
print(f"{len(episodes)} episodes, returns {episodes.returns.min():.0f} to {episodes.returns.max():.0f}")

# Any backbone: mingru, minlstm, gru, lstm, sharnn, transformer, mamba.
agent = DecisionAgent(episodes, backbone="mingru", policy_kwargs={"d_model": 64, "n_layers": 2})
agent.learn(total_timesteps=STEPS)
agent.save("runs/examples/offline")

# The return that is asked for is part of what the agent observes.
for target in (400, 1200, 2400):
    env = make_vec_env("Hopper-v5", n_envs=4, target_return=target)
    achieved, spread = evaluate_policy(agent, env, n_eval_episodes=4)
    print(f"asked for {target:5d}: {achieved:6.0f} ± {spread:.0f}")
