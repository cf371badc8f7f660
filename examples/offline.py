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

# Any backbone: mingru, minlstm, gru, lstm, sharnn, transformer, mamba, deltanet. With the condition best it follows a
# return, and learns from all episodes, so that small returns can be asked for too; by default it imitates the best of
# them alone.
agent = DecisionAgent(episodes, backbone="mingru", top_fraction=1.0, policy_kwargs={"condition": "best"})
agent.learn(total_timesteps=STEPS)
agent.save("runs/examples/offline")

# The return that is asked for is part of what the agent observes. Infinity: as much as it can get.
for target in (400, 1200, float("inf")):
    env = make_vec_env("Hopper-v5", n_envs=4, target_return=target)
    achieved, spread = evaluate_policy(agent, env, n_eval_episodes=4)
    print(f"asked for {target:5.0f}: {achieved:6.0f} ± {spread:.0f}")
