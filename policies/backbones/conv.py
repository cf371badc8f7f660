"""A short causal convolution over time, one filter per channel, blind across episodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Memory, forget, require


class CausalConv(Memory):
    """y[t] = bias + Σ_j weight[j]·x[t-j] over the last ``kernel_size`` steps of the episode.

    The state holds the last kernel_size - 1 inputs [B, kernel_size - 1, channels], zeros before the episode's first.
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        require(kernel_size >= 1, f"the kernel of a causal convolution has at least 1 step, not {kernel_size}")
        self.weight = nn.Parameter(torch.empty(kernel_size, channels))
        self.bias = nn.Parameter(torch.empty(channels))
        for parameter in (self.weight, self.bias):  # nn.Conv1d's own
            nn.init.uniform_(parameter, -(kernel_size**-0.5), kernel_size**-0.5)

    def initial_state(self, batch_size: int) -> Tensor:
        kernel_size, channels = self.weight.shape
        return self.weight.new_zeros(batch_size, kernel_size - 1, channels)

    def forward(self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before, time = len(self.weight) - 1, x.shape[1]
        state = self.initial_state(len(x)) if state is None else state
        inputs = torch.cat([state.to(x.dtype), x], 1)
        episode = None if reset is None else F.pad(reset.cumsum(1), (before, 0))  # [B, before + T]
        y = self.bias.to(x.dtype)
        for lag, weight in enumerate(self.weight.to(x.dtype)):
            shown = inputs[:, before - lag : before - lag + time]
            if episode is not None and lag:
                other = episode[:, before:] != episode[:, before - lag : before - lag + time]
                shown = shown.masked_fill(other[..., None], 0)
            y = y + weight * shown
        last = inputs[:, time:]
        if episode is None:
            last = last.clone()  # a view would keep the whole sequence in memory
        else:
            last = last.masked_fill((episode[:, time:] != episode[:, -1:])[..., None], 0)
        return y, last

    def step(self, x: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if reset is not None:
            state = forget(state, reset)
        inputs = torch.cat([state.to(x.dtype), x[:, None]], 1)
        y = self.bias + (inputs * self.weight.flip(0)).sum(1)
        return y.to(x.dtype), inputs[:, 1:]
