"""What is kept of a dataset with the agent that learned from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.registered import is_env_id
from unroll.envs.datasets.statistics import moments
from unroll.errors import DatasetError
from unroll.policies.actions import describe_space
from unroll.policies.decision import DecisionPolicy

QUANTILES = (0, 0.1, 0.5, 0.9, 1)


def describe_task(episodes: Episodes) -> dict[str, Any]:
    """What an evaluation needs to know of the data, as plain values for a checkpoint."""
    returns = episodes.returns
    return {
        "dataset": episodes.name,
        "env": episodes.env_id,
        "reference_returns": episodes.reference_returns,
        "reference_name": episodes.reference_name,
        "return_mean": float(returns.mean()),
        "return_quantiles": {str(q): float(np.quantile(returns, q)) for q in QUANTILES},
    }


def check_task(task: Any) -> None:
    """Raise ValueError unless ``describe_task`` can have said this; nothing, of an agent that has seen no data."""
    if not isinstance(task, dict):
        raise ValueError("task is no JSON object")
    if not task:
        return
    env_id, reference, quantiles = task["env"], task["reference_returns"], task["return_quantiles"]
    if env_id is not None and not is_env_id(env_id):
        raise ValueError(f"task.env {env_id!r} is not the id of an environment")
    numbers = [task["return_mean"], *(quantiles[str(q)] for q in QUANTILES)]
    if reference is not None:
        numbers += [*reference]
        if len(reference) != 2 or not isinstance(task["reference_name"], str):
            raise ValueError("task.reference_returns are no two numbers with a name")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("a return of the task is no finite number")


def return_scale(episodes: Episodes) -> float:
    """The standard deviation of the returns-to-go, or 1 where they do not vary: such a return tells nothing."""
    std = float(moments(episodes.returns_to_go_in_blocks())[1])
    largest = max(float(np.abs(values).max()) for values in episodes.returns_to_go_in_blocks())
    return std if std > 1e-6 * max(1.0, largest) else 1.0


def fit_statistics(policy: DecisionPolicy, episodes: Episodes) -> None:
    """Give the policy the scale of the observations and of the returns that it will learn from."""
    values = episodes.statistics()
    policy.normalizer.fit(values.mean, values.std)
    policy.return_scale.fill_(return_scale(episodes))


def check_same_spaces(episodes: Episodes, policy: dict[str, Any]) -> None:
    """Raise DatasetError unless the episodes observe and act as the policy of this config."""
    have = {"observation_dim": episodes.observation_dim, "action_space": describe_space(episodes.action_space)}
    for key, value in have.items():
        if policy[key] != value:
            raise DatasetError(f"{episodes.name}: {key} is {value}, the agent was trained on {policy[key]}")
