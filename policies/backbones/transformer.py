"""A pre-norm Transformer (Vaswani et al. 2017, arXiv 1706.03762) with rotary positions and a sliding window."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unroll.policies.backbones.attention import WindowedAttention
from unroll.policies.backbones.backbone import Mixer, State, require
from unroll.policies.backbones.layers import Linear, linear


class Transformer(Mixer):
    """Multi-head causal self-attention over the last ``window`` steps.

    The state is the cache of those steps' keys and values.

    Args:
        positions: ``rotary`` or ``none``.

    With positions none, n_heads 1, activation relu, attention_dropout 0.1 and a policy that embeds timesteps, this is
    the stack of the Decision Transformer (Chen et al. 2021, arXiv 2106.01345): GPT-2's blocks without their position
    embedding (``configs/decision/published.yaml``).
    """

    paper = "Vaswani et al. 2017, arXiv 1706.03762"

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        window: int = 64,
        positions: Literal["rotary", "none"] = "rotary",
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        require(n_heads >= 1, f"transformer: n_heads must be at least 1, not {n_heads}")
        # rotary positions rotate pairs of a head's channels
        fits = d_model % (2 * n_heads) == 0
        require(fits, f"transformer: d_model {d_model} must be divisible by 2 × n_heads = {2 * n_heads}")
        self.attention = WindowedAttention(
            n_heads, d_model // n_heads, window, positions == "rotary", attention_dropout
        )
        self.query_key_value = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model)

    def initial_state(self, batch_size: int) -> State:
        return self.attention.empty_cache(self.out.weight, batch_size)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        # one product for all three, then the channels of each head
        heads = (self.attention.n_heads, self.attention.head_dim)
        query, key, value = (part.unflatten(-1, heads) for part in self.query_key_value(x).chunk(3, -1))
        attended, after = self.attention(query, key, value, state, reset)
        return self.out(attended.flatten(-2)), after

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        heads = (self.attention.n_heads, self.attention.head_dim)
        query, key, value = linear(self.query_key_value, x).view(x.shape[0], 3, *heads).unbind(1)
        attended, after = self.attention.step(query, key, value, state, reset)
        return linear(self.out, attended.flatten(-2)), after
