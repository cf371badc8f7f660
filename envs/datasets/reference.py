"""Reference returns of a random and an expert policy: score 0 and score 100.

The table ``data/d4rl.json`` holds facts of D4RL (Fu et al. 2020): for each dataset id the address
of its file and, for 147 of the 155, D4RL's reference returns. There is no fallback: without a
reference there is no score.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

TABLE = Path(__file__).parent / "data" / "d4rl.json"

# Gymnasium's environments that are scored by D4RL's returns: id → D4RL's name of the task.
D4RL_TASK = {}
for task in ("Hopper", "HalfCheetah", "Walker2d"):
    for version in (2, 3, 4, 5):
        D4RL_TASK[f"{task}-v{version}"] = task.lower()

# The mean of 10 000 episodes of uniformly random actions (22.18 ± 0.12; a test repeats it) and the
# limit of 500 steps.
CARTPOLE = (22.2, 500.0), "CartPole-v1 random policy, step limit"

Number = TypeVar("Number", float, np.ndarray)


@functools.cache
def d4rl_table() -> dict[str, dict[str, Any]]:
    """Read D4RL's datasets: id → {"url": …, "reference_returns": [random, expert]}.

    Eight of them lack the second key.
    """
    return json.loads(TABLE.read_text(encoding="utf-8"))


def reference_returns(name: str | None) -> tuple[tuple[float, float], str] | tuple[None, None]:
    """Return the pair (random, expert) and where it comes from.

    `name` is the id of a D4RL dataset or of a Gymnasium environment.

    D4RL's numbers for Hopper, HalfCheetah and Walker2d were made in MuJoCo 2.1's v2 environments. A
    random policy's return in Gymnasium's v5 agrees with v2's within noise, so they serve there too,
    under D4RL's name. A task without velocities pays as its original does, and is scored by what
    was reached with them.
    """
    if name and "NoVel-" in name:
        reference, source = reference_returns(name.replace("NoVel-", "-"))
        if reference is None:
            return None, None
        return reference, f"{source}, velocities seen"
    if name == "CartPole-v1":
        return CARTPOLE

    task = D4RL_TASK.get(name or "")
    dataset_id = f"{task}-medium-v2" if task else name  # all of a task's datasets have the same
    row = d4rl_table().get(dataset_id or "", {})
    if "reference_returns" not in row:
        return None, None
    random, expert = row["reference_returns"]
    return (random, expert), f"D4RL {task or dataset_id}"


def normalized_score(returns: Number, reference: tuple[float, float]) -> Number:
    """Return ``100 (R − random) / (expert − random)``: 0 is the random policy, 100 the expert."""
    random, expert = reference
    return 100 * (returns - random) / (expert - random)
