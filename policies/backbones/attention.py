"""Causal attention over the last ``window`` steps, blind across episodes, with a cache for acting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor, Tensor]  # keys and values [B, window - 1, H, C], oldest first; how many are valid [B]


class WindowedAttention(nn.Module):
    """Each query sees its own step and the ``window - 1`` before it, of its own episode.

    Positions enter by rotation (RoPE, Su et al. 2021, arXiv 2104.09864), which depends on distances alone. So the cache
    keeps keys as they were before rotation, in order of time, and needs no absolute position: nothing grows in an
    episode without end, and ``step`` and ``forward`` agree exactly also after the window is full.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, n_heads: int, head_dim: int, window: int, rotary_base: float = 10_000.0):
        super().__init__()
        self.n_heads, self.head_dim, self.window, self.rotary_base = n_heads, head_dim, window, rotary_base
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    def empty_cache(self, like: Tensor, batch_size: int) -> Cache:
        """A cache of zeros with the type and device of ``like``."""
        shape = (batch_size, self.window - 1, self.n_heads, self.head_dim)
        return (
            like.new_zeros(shape),
            like.new_zeros(shape),
            torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Cache | None, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """query, key, value [B, T, H, C] → [B, T, H, C] and the cache after the last step; ``reset`` [B, T]."""
        batch, time = query.shape[:2]
        old = self.window - 1
        mask = None
        if cache is None:
            keys, values = key, value
            if reset is not None or time > self.window:
                mask = self._mask(time, 0, None, reset, query.device)
            valid = torch.full((batch,), time, device=query.device)
        else:
            keys, values = torch.cat([cache[0], key], 1), torch.cat([cache[1], value], 1)
            mask = self._mask(time, old, cache[2], reset, query.device)
            valid = cache[2] + time
        first = keys.shape[1] - time  # where the first query's own key stands
        cos, sin = self._rotation(keys.shape[1], keys)
        attended = F.scaled_dot_product_attention(
            rotate(query, cos[first:], sin[first:]).transpose(1, 2),
            rotate(keys, cos, sin).transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
        )
        if reset is not None:  # only what came since the last reset is valid
            since = torch.arange(time, 0, -1, device=reset.device) * reset
            last = torch.where(reset, since, time + 1).amin(1)
            valid = torch.where(reset.any(1), last, valid)
        if keys.shape[1] < old:
            pad = (0, 0, 0, 0, old - keys.shape[1], 0)
            keys, values = F.pad(keys, pad), F.pad(values, pad)
        kept = slice(keys.shape[1] - old, None)
        return attended.transpose(1, 2), (keys[:, kept], values[:, kept], valid.clamp_max(old))

    def _mask(self, time: int, old: int, valid: Tensor | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """What a query may see, bool [B or 1, 1, T, old + T]: slot ``old + t`` holds step t, the slots before it the
        cache."""
        slot = torch.arange(old + time, device=device)
        query = slot[old:, None]
        seen = ((slot <= query) & (slot > query - self.window))[None]
        if valid is not None:
            seen = seen & (slot >= old - valid[:, None])[:, None]
        if reset is not None:
            episode = reset.cumsum(1)
            owner = F.pad(episode, (old, 0))  # the cache belongs to the episode that runs before any reset
            seen = seen & (owner[:, None] == episode[:, :, None])
        return seen[:, None]

    def _rotation(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [length, C/2] of position · frequency, made in float64 and kept for the next call."""
        if len(self.cos) < length or self.cos.dtype != like.dtype or self.cos.device != like.device:
            with torch.inference_mode(False):  # made while acting, they must serve learning as well
                exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
                angle = torch.arange(length, dtype=torch.float64)[:, None] * self.rotary_base**-exponent
                self.cos, self.sin = (x.to(like.device, like.dtype) for x in (angle.cos(), angle.sin()))
        return self.cos[:length], self.sin[:length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (c, c + C/2) of x [B, T, H, C] by the angles of its positions, cos and sin [T, C/2]."""
    left, right = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
