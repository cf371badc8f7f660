"""Behaviour first, then reinforcement: an LSTM clones what a trained minGRU does, and goes on with PPO.

python examples/pretrain.py    two minutes; STEPS=1024 before it is a shorter try

The same by commands: unroll record --run …, unroll train --agent ppo --pretrain.dataset … (docs/ppo.md).
"""

import os
from pathlib import Path

from stable_baselines3.common.evaluation import evaluate_policy

from unroll.agents import RecurrentPPO
from unroll.cli import main
from unroll.envs import load_episodes, make_vec_env

STEPS = int(os.environ.get("STEPS", "20000"))
DATA = Path("runs/examples/cartpole.hdf5")

# The teacher comes with the package. It balances a CartPole whose velocities are hidden.
teacher = ["--run", "zoo:cartpole_masked/mingru", "--episodes", "20"]
if not DATA.is_file() and main(["record", *teacher, "--output", str(DATA)]):
    raise SystemExit(1)

env = make_vec_env("CartPoleNoVel-v1", n_envs=8)
agent = RecurrentPPO("MlpPolicy", env, backbone="lstm", seed=0)


def tell(when: str) -> None:
    mean, deviation = evaluate_policy(agent, env, n_eval_episodes=20)
    print(f"{when}: {mean:.1f} of 500, ± {deviation:.1f} over 20 episodes")


tell("untrained")
agent.pretrain(load_episodes(str(DATA)), updates=max(10, STEPS // 100))
tell("after pretraining")
# At first the critic learns alone, and a divergence ties the policy to what it has cloned.
agent.learn(STEPS)
tell(f"after {STEPS} steps of PPO")
