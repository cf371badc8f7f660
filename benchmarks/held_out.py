"""How much of what a decision agent learns is the noise of its data: the error on episodes that were held out.

    python -m benchmarks.held_out a.hdf5 b.hdf5 [--agents "default,no memory"] [--updates 5000] [--seed 0] [--jobs 2]

Every fifth of the episodes of the best tenth is held out, and the agent learns from the others. Ten times while it does
the error on the held-out ones is measured, without dropout: the cross-entropy of discrete actions, -log p for each
number of continuous ones. The table, in Markdown, says where it was least, what it was at the end, and what the error
on the episodes learned from was then.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unroll.policies.backbones.memoryless  # noqa: F401  a backbone by its module's name has to be imported
from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.decision.config import BEST_SHARE
from unroll.envs.datasets.sampling import Sampler, make_sampler
from unroll.envs.datasets.sources import load_episodes
from unroll.tables import markdown_table

NO_MEMORY = {"backbone": "unroll.policies.backbones.memoryless:Memoryless", "previous_action": False}
# Name → what differs from the default agent.
AGENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "weight decay 0.3": {"weight_decay": 0.3},
    "weight decay 1": {"weight_decay": 1.0},
    "dropout 0.3": {"policy_kwargs": {"dropout": 0.3}},
    "dropout 0.5": {"policy_kwargs": {"dropout": 0.5}},
    "batches of 16": {"batch_size": 16},
    "no memory": {"policy_kwargs": NO_MEMORY},
}
POINTS = 10
BATCHES = 40


@torch.no_grad()
def error(agent: DecisionAgent, sampler: Sampler) -> float:
    """Return the mean loss of batches that are always the same."""
    agent.policy.eval()
    return float(np.mean([agent.loss(sampler.sample(64, 123, i)).item() for i in range(BATCHES)]))


def row(dataset: str, name: str, updates: int, seed: int) -> list[str]:
    """Train one agent; return its row of the table."""
    torch.set_num_threads(1)
    episodes = load_episodes(dataset).top(BEST_SHARE)
    numbers = np.arange(len(episodes))
    held_out = numbers % 5 == 0
    agent = DecisionAgent(
        episodes.select(numbers[~held_out]),
        device="cpu",
        seed=seed,
        top_fraction=1.0,
        **{"policy_kwargs": {}} | AGENTS[name],
    )
    assert agent.sampler is not None
    unseen = make_sampler(episodes.select(numbers[held_out]), agent.policy.config["context"], "cpu")
    agent._total_timesteps = updates  # of which the learning rate is a function
    errors = [error(agent, unseen)]
    for _ in range(POINTS):
        for _ in range(updates // POINTS):
            agent.update()
        errors.append(error(agent, unseen))
    best = int(np.argmin(errors))
    least = f"{errors[best]:.3f} after {best * updates // POINTS:,}"
    return [Path(dataset).stem, name, least, f"{errors[-1]:.3f}", f"{error(agent, agent.sampler):.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--agents", default="default,no memory")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        waiting = [
            pool.submit(row, dataset, name, options.updates, options.seed)
            for dataset in options.datasets
            for name in options.agents.split(",")
        ]
        rows = [one.result() for one in waiting]
    print(markdown_table(["set", "agent", "least error held out", "at the end", "learned from"], rows))


if __name__ == "__main__":
    main()
