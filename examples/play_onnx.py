"""Play an exported policy with NumPy and ONNX Runtime: neither PyTorch nor unroll is imported.

unroll export zoo:cartpole_masked/mingru            writes runs/zoo/cartpole_masked/mingru/onnx
python examples/play_onnx.py                        plays it; another folder may be given
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/zoo/cartpole_masked/mingru/onnx")
if not (folder / "policy.onnx").is_file():
    sys.exit(f"{folder}: no exported policy; unroll export zoo:cartpole_masked/mingru writes one")
sys.path.insert(0, str(folder))
from run import Policy  # noqa: E402  (the runner that the export has put beside the policy)

# The policy sees the positions of cart and pole, and has to remember what gives their velocities.
policy = Policy(folder)
env = gym.make("CartPole-v1")
for seed in range(3):
    observation, _ = env.reset(seed=seed)
    total = 0.0
    start = True
    done = False
    while not done:
        positions = observation[[0, 2]]
        (action,) = policy({"observation": positions[None], "reset": np.array([start])})
        observation, reward, terminated, truncated, _ = env.step(action)
        total += reward
        start = False
        done = terminated or truncated
    print(f"episode {seed}: {total:.0f} steps of balance")
print("PyTorch imported:", "torch" in sys.modules)
