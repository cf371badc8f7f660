"""Environment steps per second of an evaluation: the batched carried path against re-encoding in one environment.

    python -m benchmarks.acting [--output FILE.json]          run from the root of the repository

The reference is what research code for the Decision Transformer does: one environment, and the last ``context`` steps
embedded and encoded anew for every action. The policies are untrained, so Hopper-v5 is told not to end an episode when
the hopper falls: every episode has the length that a good policy's has at least. Environments are made before the clock
starts. All rows are of one run; the ratio compares the same backbone with the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents import DecisionAgent
from agents.evaluation import Episode, play
from benchmarks.machine import machine
from envs.datasets import SEQUENCE_KEYS, Episodes
from envs.make import make_env
from envs.wrappers import ReturnToGo
from policies.backbones import BACKBONES

CONTEXT = 20
LENGTH = 100


def episodes_like_hopper() -> Episodes:
    """A dataset of Hopper's shapes, for statistics and sizes alone."""
    random = np.random.default_rng(0)
    return Episodes(
        observations=random.normal(size=(1000, 11)).astype(np.float32),
        actions=random.uniform(-1, 1, (1000, 3)).astype(np.float32),
        rewards=random.normal(size=1000).astype(np.float32),
        lengths=np.array([1000]),
        terminated=np.array([True]),
        truncated=np.array([False]),
        action_space=gym.spaces.Box(-1, 1, (3,), np.float32),
        name="shapes",
    )


class ReencodingLoop:
    """The published way to act, for a batch of one: a history that grows, and a forward over its end."""

    def __init__(self, agent: DecisionAgent):
        self.agent = agent

    @torch.inference_mode()
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.agent.policy.eval()
        new = {key: torch.as_tensor(observation[key]) for key in SEQUENCE_KEYS}
        new["observation"] = new["observation"].float()
        new["return_to_go"], new["timestep"] = new["return_to_go"].squeeze(-1), new["timestep"].squeeze(-1)
        history = tuple(new[key][:, None] for key in SEQUENCE_KEYS)
        if not episode_start[0]:
            history = tuple(torch.cat([old, x], 1)[:, -CONTEXT:] for old, x in zip(state, history, strict=True))
        prediction, _ = self.agent.policy(dict(zip(SEQUENCE_KEYS, history, strict=True)))
        return self.agent.policy.action.choose(prediction[:, -1], deterministic).numpy(), history


def make() -> gym.Env:
    return ReturnToGo(make_env("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=LENGTH))


def rate(agent: Any, n_envs: int, repeats: int) -> float:
    """Environment steps per second, the median of ``repeats``."""
    rates = []
    for _ in range(repeats):
        episodes = [Episode(seed, 3600.0) for seed in range(n_envs)]
        envs = iter([make() for _ in range(n_envs)])
        begin = time.perf_counter()
        play(agent, lambda envs=envs: next(envs), episodes, n_envs)
        rates.append(sum(episode.length for episode in episodes) / (time.perf_counter() - begin))
    return statistics.median(rates)


def physics(repeats: int) -> float:
    """The same without a policy: the limit."""
    agent = SimpleNamespace(
        predict=lambda observation, *_: (np.zeros((len(observation["observation"]), 3)), torch.zeros(100))
    )
    return rate(agent, 100, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acting", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for tokens in ("interleaved", "fused"):
        for backbone in ("transformer", *(name for name in BACKBONES if name != "transformer")):
            policy = dict(backbone=backbone, tokens=tokens)
            agent = DecisionAgent(episodes_like_hopper(), context=CONTEXT, device="cpu", policy_kwargs=policy)
            row = {
                "backbone": backbone,
                "tokens": tokens,
                "re-encoding × 1": rate(ReencodingLoop(agent), 1, options.repeats),
            }
            for memory, n_envs in (("window", 1), ("window", 100), ("carried", 1), ("carried", 8), ("carried", 100)):
                agent.policy.memory = memory
                row[f"{memory} × {n_envs}"] = rate(agent, n_envs, options.repeats)
            rows.append(row)
    limit = physics(options.repeats)
    print(f"environment steps/s in Hopper-v5, context {CONTEXT}, {options.threads} thread(s)")
    print(f"{machine()}\nlimit, without a policy: {limit:,.0f}\n")
    print(f"| {' | '.join(rows[0])} | carried × 100 / re-encoding × 1 |\n{'|---' * (len(rows[0]) + 1)}|")
    for row in rows:
        cells = [f"{value:,.0f}" if isinstance(value, float) else value for value in row.values()]
        print(f"| {' | '.join(cells)} | {row['carried × 100'] / row['re-encoding × 1']:.1f} |")
    if options.output:
        with open(options.output, "w") as file:
            json.dump({"machine": machine(), "limit": limit, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
