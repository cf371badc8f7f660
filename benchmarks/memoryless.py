"""The control of memory tasks: a mixer that mixes nothing. All else of the policy and its learning is the same.

python -m unroll train --config ppo/cartpole_masked --backbone.name benchmarks.memoryless:Memoryless
"""

from __future__ import annotations

from torch import Tensor

from unroll.policies.backbones import Mixer, State
from unroll.policies.backbones.layers import Linear


class Memoryless(Mixer):
    """A linear layer over the step itself, y = W x. The state is [B, 0]: there is none."""

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = Linear(d_model, d_model)

    def initial_state(self, batch_size: int) -> State:
        return self.linear.weight.new_zeros(batch_size, 0)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))
        return self.linear(x), state
