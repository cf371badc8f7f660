"""A mixer that remembers nothing: the control of memory tasks. All else of a policy and of its learning is the same.

It is not among ``BACKBONES``, since it breaks the law that the past matters. Name it by its class::

    python train.py --config configs/ppo/cartpole_masked.yaml \
        --backbone.name unroll.policies.backbones.memoryless:Memoryless
"""

from __future__ import annotations

from torch import Tensor

from unroll.policies.backbones.backbone import Mixer, State
from unroll.policies.backbones.layers import Linear


class Memoryless(Mixer):
    """y = W x of the step itself. The state is empty, [B, 0]."""

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = Linear(d_model, d_model)

    def initial_state(self, batch_size: int) -> State:
        return self.linear.weight.new_zeros(batch_size, 0)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))
        return self.linear(x), state
