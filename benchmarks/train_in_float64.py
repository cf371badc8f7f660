"""``unroll train`` with a PPO that computes in float64, for benchmarks.ranks.

In float32 the last bits of sums over processes change an action in the end. In float64 several processes learn the same
as one for longer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(arguments: list[str]) -> int:
    import numpy as np
    import stable_baselines3.common.policies as policies
    from stable_baselines3.common.buffers import RolloutBuffer

    from unroll.commands import train

    # Observations and the rollout buffer of Stable-Baselines3 are float32 whatever PyTorch's default is.
    preprocess = policies.preprocess_obs
    reset = RolloutBuffer.reset

    def in_float64(*inputs: Any, **options: Any) -> Any:
        return preprocess(*inputs, **options).double()

    def to_float64(buffer: RolloutBuffer) -> None:
        reset(buffer)
        for name in ("rewards", "returns", "values", "log_probs", "advantages"):
            setattr(buffer, name, getattr(buffer, name).astype(np.float64))

    torch.set_default_dtype(torch.float64)
    RolloutBuffer.reset = to_float64  # type: ignore[method-assign]
    policies.preprocess_obs = in_float64
    return train.main(arguments)


if __name__ == "__main__":
    from unroll.commands.process import leave

    leave(main(sys.argv[1:]))
