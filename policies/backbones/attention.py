"""Causal attention over the last ``window`` steps, blind across episodes, with a cache for acting."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import forget, require

ROTARY_BASE = 10_000.0

# keys (rotated) and values [B, window - 1, H, C], oldest first, and how many steps the episode has had [B]; where the
# values are the keys, the keys and how many steps
Cache = tuple[Tensor, ...]


class WindowedAttention(nn.Module):
    """Each query sees its own step and the ``window - 1`` before it, of its own episode.

    Positions count from the episode's first step and enter by rotation (RoPE, Su et al. 2021, arXiv 2104.09864), whose
    scores depend on distances alone, or not at all. A key is rotated once and then kept, so ``step`` and ``forward``
    agree exactly, also after the window is full. Angles are made in float64: no digits are lost in an episode without
    end. What is not finite is the exception: in one ``forward`` it reaches every query of its row, since a score that
    is masked is NaN with it; a cache is cleared where the first step begins an episode.

    Args:
        rotary: rotate queries and keys by their positions.
        dropout: of the attention weights, and of values that are the keys, while training.
    """

    def __init__(self, n_heads: int, head_dim: int, window: int, rotary: bool = True, dropout: float = 0.0):
        super().__init__()
        require(window >= 1, f"window must be at least 1, not {window}")
        require(0 <= dropout < 1, f"the attention's dropout must be at least 0 and less than 1, not {dropout}")
        self.n_heads, self.head_dim, self.window = n_heads, head_dim, window
        self.rotary, self.dropout = rotary, dropout

    def empty_cache(self, like: Tensor, batch_size: int, shared: bool = False) -> Cache:
        """A cache of zeros with the type and device of ``like``; ``shared``: the values are the keys."""
        shape = (batch_size, self.window - 1, self.n_heads, self.head_dim)
        past = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        return *(like.new_zeros(shape) for _ in range(1 if shared else 2)), past

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None, cache: Cache | None, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """query, key, value [B, T, H, C] → [B, T, H, C] and the cache after the last step; ``reset`` [B, T]. Without a
        value the keys are the values."""
        batch, time = query.shape[:2]
        position = self._positions(time, cache, reset, query.device)
        if self.rotary:
            cos, sin = self._rotation(position, query)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        stored: Cache = (key,) if value is None else (key, value)
        if cache is not None:
            before = cache[:-1] if reset is None else [forget(old, reset[:, 0]) for old in cache[:-1]]
            stored = tuple(torch.cat([old.to(new.dtype), new], 1) for old, new in zip(before, stored, strict=True))
        mask = None
        if cache is not None or reset is not None or time > self.window:
            mask = self._mask(time, cache, reset, query.device)
        values = F.dropout(stored[0], self.dropout, self.training) if value is None else stored[1]
        attended = attend(
            query.transpose(1, 2),
            stored[0].transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        old = self.window - 1
        if stored[0].shape[1] < old:
            stored = tuple(F.pad(x, (0, 0, 0, 0, old - x.shape[1], 0)) for x in stored)
        stored = tuple(x[:, x.shape[1] - old :] for x in stored)
        if time > 1:  # views would keep the whole sequence in memory; that of one step, one slot
            stored = tuple(x.clone() for x in stored)
        past = (position[:, -1] + 1).expand(batch).contiguous()
        return attended.transpose(1, 2), (*stored, past)

    def step(
        self, query: Tensor, key: Tensor, value: Tensor | None, cache: Cache, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """The same for one step: query, key, value [B, H, C] → [B, H, C]; ``reset`` [B]."""
        if reset is not None:
            cache = tuple(forget(part, reset) for part in cache)
        *before, past = cache
        if self.rotary:
            cos, sin = self._rotation(past, query)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        added = (key,) if value is None else (key, value)
        stored = [torch.cat([old.to(new.dtype), new[:, None]], 1) for old, new in zip(before, added, strict=True)]
        slot = torch.arange(self.window, device=query.device)
        seen = slot >= self.window - 1 - past[:, None]  # the slots that the episode has filled, and this step's
        values = F.dropout(stored[0], self.dropout, self.training) if value is None else stored[1]
        attended = F.scaled_dot_product_attention(
            query[:, :, None],
            stored[0].transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=seen[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended[:, :, 0], (*(x[:, 1:] for x in stored), past + 1)

    def _positions(self, time: int, cache: Cache | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """The steps since each one's episode began, [B or 1, T]."""
        step = torch.arange(time, device=device)
        position = step[None] if cache is None else cache[-1][:, None] + step
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
            seen = seen & (slot >= old - cache[-1][:, None])[:, None]
        if reset is not None:
            episode = reset.cumsum(1)
            owner = F.pad(episode, (old, 0))  # the cache belongs to the episode that runs before any reset
            seen = seen & (owner[:, None] == episode[:, :, None])
        return seen[:, None]

    def _rotation(self, position: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., 1, C/2] of position [...] · frequency."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=like.device) / self.head_dim
        angle = position[..., None, None] * ROTARY_BASE**-exponent
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention, in float32 on a CPU also under autocast: in bfloat16 its gradient takes there ten
    times as long."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(query, key, value, **options)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (c, c + C/2) of x [B, T, H, C] by the angles of their positions."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
