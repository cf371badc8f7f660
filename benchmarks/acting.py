"""Environment steps per second of an evaluation: the batched carried path against re-encoding in one environment.

    python -m benchmarks.acting [--output FILE.json]          run from the root of the repository

The reference is what research code for the Decision Transformer does: one environment, and the last ``context`` steps
encoded anew for every action. The policies are untrained and act in Hopper-v5 (whose episodes then are short, so that
environments are reset all the time, as in an evaluation); every row steps the same kind of policy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import gymnasium as gym
import numpy as np
import torch
from rich import print
from rich.table import Table

from agents import DecisionAgent
from agents.evaluation import Episode, play
from benchmarks.machine import machine
from envs.datasets import Episodes
from envs.make import make_env
from envs.wrappers import ReturnToGo
from policies.backbones import BACKBONES

CONTEXT = 20


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


def rate(agent: DecisionAgent, n_envs: int, env_steps: int, repeats: int) -> float:
    """Environment steps per second, the median of ``repeats``."""
    rates = []
    for _ in range(repeats):
        n = max(n_envs, env_steps // 30)
        episodes = [Episode(seed, 3600.0) for seed in range(n)]
        envs = iter([ReturnToGo(make_env("Hopper-v5", max_episode_steps=60)) for _ in range(min(n_envs, n))])
        begin = time.perf_counter()
        play(agent, lambda envs=envs: next(envs), episodes, n_envs)  # type: ignore[misc]
        rates.append(sum(episode.length for episode in episodes) / (time.perf_counter() - begin))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acting", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="environment steps of a repeat, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for tokens in ("interleaved", "fused"):
        for backbone in ("transformer", *(name for name in BACKBONES if name != "transformer")):
            policy = dict(backbone=backbone, tokens=tokens)
            agent = DecisionAgent(episodes_like_hopper(), context=CONTEXT, device="cpu", policy_kwargs=policy)
            row = {"backbone": backbone, "tokens": tokens}
            for memory, n_envs in (("window", 1), ("window", 100), ("carried", 1), ("carried", 8), ("carried", 100)):
                agent.policy.memory = memory
                row[f"{memory} × {n_envs}"] = rate(agent, n_envs, options.steps * (1 + n_envs // 4), options.repeats)
            rows.append(row)
    table = Table(title=f"environment steps/s in Hopper-v5, context {CONTEXT}, {options.threads} thread\n{machine()}")
    for column in (*rows[0], "carried × 100 / window × 1"):
        table.add_column(column, justify="right" if "×" in column else "left")
    for row in rows:
        row["ratio"] = row["carried × 100"] / row["window × 1"]
        table.add_row(
            *(f"{v:,.0f}" if isinstance(v, float) else v for v in list(row.values())[:-1]), f"{row['ratio']:.1f}"
        )
    print(table)
    if options.output:
        with open(options.output, "w") as file:
            json.dump({"machine": machine(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
