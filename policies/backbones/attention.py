"""Causal attention over the last ``window`` steps, blind across episodes, with a cache for acting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import forget, require
from unroll.policies.backbones.scan import check_shapes

ROTARY_BASE = 10_000.0

# The last window - 1 steps: rotated keys and values [B, window - 1, H, C], oldest first, and how many steps the episode
# has had [B]. Where the keys are the values, they are stored once.
Cache = tuple[Tensor, ...]


class WindowedAttention(nn.Module):
    """Attention in which each query sees its own step and the ``window - 1`` before it, of its own episode.

    Positions count from the episode's first step and enter by rotation (RoPE, Su et al. 2021, arXiv 2104.09864,
    equations 14 to 16), or not at all. The scores of rotated queries and keys depend on distances alone, so a key is
    rotated once and then kept, and ``step`` and ``forward`` agree exactly, also after the window is full. Angles are
    computed in float64: no digits are lost in an episode without end.

    Numbers that are not finite are the exception to the blindness. In one ``forward`` they reach every query of their
    row, because a masked score is still NaN. A cache is cleared where the first step begins an episode.

    Args:
        rotary: Rotate queries and keys by their positions.
        dropout: Dropout of the attention weights, and of values that are the keys, while training.
    """

    def __init__(self, n_heads: int, head_dim: int, window: int, rotary: bool = True, dropout: float = 0.0):
        super().__init__()
        require(window >= 1, f"window must be at least 1, not {window}")
        require(0 <= dropout < 1, f"the attention's dropout must be at least 0 and less than 1, not {dropout}")
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.window = window
        self.rotary = rotary
        self.dropout = dropout

    def empty_cache(self, like: Tensor, batch_size: int, shared: bool = False) -> Cache:
        """Make a cache of zeros with the type and device of ``like``. ``shared``: the keys are the values."""
        shape = (batch_size, self.window - 1, self.n_heads, self.head_dim)
        keys = like.new_zeros(shape)
        past = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        if shared:
            return keys, past
        return keys, like.new_zeros(shape), past

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None, cache: Cache | None, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """Attend over sequences: query, key, value [B, T, H, C] → [B, T, H, C] and the cache after the last step.

        ``reset`` is [B, T]. ``value`` None means that the keys are the values.
        """
        batch, time = query.shape[:2]
        check_shapes(query.shape, (batch,), None if cache is None else cache[-1], reset)
        position = self._positions(time, cache, reset, query.device)
        if self.rotary:
            cos, sin = self._rotation(position, query)
            query = rotate(query, cos, sin)
            key = rotate(key, cos, sin)

        # The steps of the cache stand before those of the sequence.
        stored: Cache = (key,) if value is None else (key, value)
        if cache is not None:
            stored = append(cache[:-1], stored, None if reset is None else reset[:, 0])

        # One episode from its start, within the window, needs no mask: that is the fast way of PyTorch's kernels.
        mask = None
        if cache is not None or reset is not None or time > self.window:
            mask = self._mask(time, cache, reset, query.device)

        # softmax(QKᵀ/√C) V, equation 1 of Vaswani et al. 2017 (arXiv 1706.03762)
        attended = attend(
            query.transpose(1, 2),
            stored[0].transpose(1, 2),
            self._values(stored).transpose(1, 2),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )

        # Keep the last window - 1 steps. Where there are fewer, zeros stand before them.
        n_kept = self.window - 1
        missing = n_kept - stored[0].shape[1]
        if missing > 0:
            stored = tuple(F.pad(x, (0, 0, 0, 0, missing, 0)) for x in stored)
        stored = tuple(x[:, x.shape[1] - n_kept :] for x in stored)
        if time > 1:
            # A view would keep the whole sequence allocated; after a single step it is only one slot too much.
            stored = tuple(x.clone() for x in stored)
        past = (position[:, -1] + 1).expand(batch).contiguous()
        return attended.transpose(1, 2), (*stored, past)

    def step(
        self, query: Tensor, key: Tensor, value: Tensor | None, cache: Cache, reset: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """Attend in one step: query, key, value [B, H, C] → [B, H, C] and the next cache; ``reset`` is [B]."""
        past = cache[-1]
        if reset is not None:
            past = forget(past, reset)
        if self.rotary:
            cos, sin = self._rotation(past, query)
            query = rotate(query, cos, sin)
            key = rotate(key, cos, sin)

        added = [key[:, None]]
        if value is not None:
            added.append(value[:, None])
        stored = append(cache[:-1], added, reset)

        # Seen are the slots that the episode has filled, and this step's, which is the last.
        slot = torch.arange(self.window, device=query.device)
        seen = slot >= self.window - 1 - past[:, None]
        attended = F.scaled_dot_product_attention(
            query[:, :, None],
            stored[0].transpose(1, 2),
            self._values(stored).transpose(1, 2),
            attn_mask=seen[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        kept = [x[:, 1:] for x in stored]
        return attended[:, :, 0], (*kept, past + 1)

    def _values(self, stored: Cache) -> Tensor:
        if len(stored) > 1:
            return stored[1]
        return F.dropout(stored[0], self.dropout, self.training)

    def _positions(self, time: int, cache: Cache | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """Count the steps since each step's episode began, [B or 1, T]."""
        step = torch.arange(time, device=device)
        position = step[None]
        if cache is not None:
            position = cache[-1][:, None] + step
        if reset is None:
            return position
        # the latest reset up to each step, or -1 while the episode before the sequence goes on
        last = torch.where(reset, step, -1).cummax(1).values
        return torch.where(last >= 0, step - last, position)

    def _mask(self, time: int, cache: Cache | None, reset: Tensor | None, device: torch.device) -> Tensor:
        """Say which slot a query may see, bool [B or 1, 1, T, S].

        The first slots are those of the cache, if there is one; then slot ``n_cached + t`` holds step t.
        """
        n_cached = 0
        if cache is not None:
            n_cached = self.window - 1
        slot = torch.arange(n_cached + time, device=device)
        query = slot[n_cached:, None]

        # causal, and within the window
        seen = ((slot <= query) & (slot > query - self.window))[None]
        if cache is not None:
            # of the cache, the slots that the episode has filled
            filled = slot >= n_cached - cache[-1][:, None]
            seen = seen & filled[:, None]
        if reset is not None:
            # of the same episode; the cache belongs to the one that goes on until the first reset
            episode = reset.cumsum(1)
            owner = F.pad(episode, (n_cached, 0))
            seen = seen & (owner[:, None] == episode[:, :, None])
        return seen[:, None]

    def _rotation(self, position: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [..., 1, C/2] of the angles m·θ_i at positions m [...] (equation 15)."""
        # θ_i = base^(-2i/C)
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=like.device) / self.head_dim
        angle = position[..., None, None] * ROTARY_BASE**-exponent
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def append(cached: Sequence[Tensor], added: Sequence[Tensor], reset: Tensor | None) -> Cache:
    """Append new steps to cached ones, which are cleared first in rows where ``reset`` [B] is true."""
    joined = []
    for old, new in zip(cached, added, strict=True):
        if reset is not None:
            old = forget(old, reset)
        joined.append(torch.cat([old.to(new.dtype), new], 1))
    return tuple(joined)


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Compute scaled dot-product attention, on a CPU in float32 also under autocast.

    In bfloat16, its gradient takes ten times as long there.
    """
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(query, key, value, **options)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, T, H, C] by the angles of its positions (equation 34); a pair is the channels (c, c + C/2)."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
