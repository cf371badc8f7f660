"""train.py whose PPO computes in float64: what it learns on several processes is what it learns on one for longer than
float32's last bits, of which one makes another action in the end, let it be. For benchmarks.ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(arguments: list[str]) -> int:
    import stable_baselines3.common.policies as policies

    import train

    preprocess = policies.preprocess_obs

    def in_float64(*inputs: Any, **options: Any) -> Any:
        return preprocess(*inputs, **options).double()

    torch.set_default_dtype(torch.float64)
    policies.preprocess_obs = in_float64
    return train.main(arguments)


if __name__ == "__main__":
    from configs.commands import leave

    leave(main(sys.argv[1:]))
