"""Causal attention over the last ``window`` steps, blind across episodes, with a cache for acting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# keys (rotated) and values [B, window - 1, H, C], oldest first, and how many steps the episode has had [B]
Cache = tuple[Tensor, Tensor, Tensor]


class WindowedAttention(nn.Module):
    """Each query sees its own step and the ``window - 1`` before it, of its own episode.

    Positions count from the episode's first step and enter by rotation (RoPE, Su et al. 2021, arXiv 2104.09864), whose
    scores depend on distances alone. A key is rotated once and then kept, so ``step`` and ``forward`` agree exactly,
    also after the window is full. Angles are made in float64: no digits are lost in an episode without end.
    """

    def __init__(self, n_heads: int, head_dim: int, window: int, rotary_base: float = 10_000.0):
        super().__init__()
        self.n_heads, self.head_dim, self.window, self.rotary_base = n_heads, head_dim, window, rotary_base

    def empty_cache(self, like: Tensor, batch_size: int) -> Cache:
        """A cache of zeros with the type and device of ``like``."""
        shape = (batch_size, self.window - 1, self.n_heads, self.head_dim)
        past = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        return like.new_zeros(shape), like.new_zeros(shape), past

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Cache | None, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """query, key, value [B, T, H, C] → [B, T, H, C] and the cache after the last step; ``reset`` [B, T]."""
        batch, time = query.shape[:2]
        position = self._positions(time, cache, reset, query.device)
        cos, sin = self._rotation(position, query)
        query, keys, values = rotate(query, cos, sin), rotate(key, cos, sin), value
        if cache is not None:
            keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], value], 1)
        mask = None
        if cache is not None or reset is not None or time > self.window:
            mask = self._mask(time, cache, reset, query.device)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        old = self.window - 1
        if keys.shape[1] < old:
            pad = (0, 0, 0, 0, old - keys.shape[1], 0)
            keys, values = F.pad(keys, pad), F.pad(values, pad)
        kept = slice(keys.shape[1] - old, None)
        past = (position[:, -1] + 1).expand(batch)
        return attended.transpose(1, 2), (keys[:, kept], values[:, kept], past)

    def _positions(self, time: int, cache: Cache | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """The steps since each one's episode began, [B or 1, T]."""
        step = torch.arange(time, device=device)
        position = step[None] if cache is None else cache[2][:, None] + step
        if reset is None:
            return position
        last = torch.where(reset, step, -1).cummax(1).values
        return torch.where(last >= 0, step - last, position)

    def _mask(self, time: int, cache: Cache | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """What a query may see, bool [B or 1, 1, T, S]; slot ``old + t`` holds step t, those before it the cache."""
        old = 0 if cache is None else self.window - 1
        slot = torch.arange(old + time, device=device)
        query = slot[old:, None]
        seen = ((slot <= query) & (slot > query - self.window))[None]
        if cache is not None:  # the slots that the episode has filled
            seen = seen & (slot >= old - cache[2][:, None])[:, None]
        if reset is not None:
            episode = reset.cumsum(1)
            owner = F.pad(episode, (old, 0))  # the cache belongs to the episode that runs before any reset
            seen = seen & (owner[:, None] == episode[:, :, None])
        return seen[:, None]

    def _rotation(self, position: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B or 1, T, 1, C/2] of position · frequency."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=like.device) / self.head_dim
        angle = position[..., None, None] * self.rotary_base**-exponent
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (c, c + C/2) of x [B, T, H, C] by the angles of their positions."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
