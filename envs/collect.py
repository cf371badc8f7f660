"""Record a dataset: an agent of Stable-Baselines3 while it learns, or a trained run of ours while it plays.

    python -m envs.collect --algorithm sac --env Hopper-v5 --steps 100000 --output hopper.hdf5
    python -m envs.collect --run runs/… --episodes 200 --noise 0.2 --target 3000 --output minari:hopper/mine-v0

This is a command: like train.py it stands above the packages, so it alone in ``envs`` may import ``agents``.
"""

from __future__ import annotations

import argparse

import gymnasium
import stable_baselines3
import torch
from rich import print

from envs.datasets import Episodes
from envs.make import make_env
from envs.recorder import Recorder
from envs.writers import write_hdf5, write_minari

ALGORITHMS = {name.lower(): getattr(stable_baselines3, name) for name in ("A2C", "DQN", "PPO", "SAC", "TD3")}


def record_learning(algorithm: str, env_id: str, steps: int, seed: int) -> Episodes:
    """All finished episodes of an agent that learns from scratch: a replay set, from untrained to good, in order."""
    env = Recorder(make_env(env_id))
    agent = ALGORITHMS[algorithm]("MlpPolicy", env, seed=seed, device="cpu")
    agent.learn(steps, progress_bar=False)
    return env.episodes(f"{env_id} {algorithm} replay")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.collect", description=__doc__.split("\n")[0])
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS))
    parser.add_argument("--env")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes = record_learning(options.algorithm, options.env, options.steps, options.seed)
    write_hdf5(episodes, options.output)
    print(len(episodes), episodes.n_steps, episodes.returns.mean(), episodes.returns.max())


if __name__ == "__main__":
    main()
