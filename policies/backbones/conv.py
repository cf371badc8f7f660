"""A short causal convolution over time, one filter per channel, blind across episodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Memory, forget, require
from unroll.policies.backbones.kernels import choose_body
from unroll.policies.backbones.kernels import conv as operators
from unroll.policies.backbones.scan import check_shapes


class CausalConv(Memory):
    """y[t] = bias + Σ_j weight[j]·x[t-j] over the last ``kernel_size`` steps of the episode.

    The state holds the last kernel_size - 1 inputs [B, kernel_size - 1, channels]. They are zeros before the episode.
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        require(kernel_size >= 1, f"the kernel of a causal convolution has at least 1 step, not {kernel_size}")
        self.weight = nn.Parameter(torch.empty(kernel_size, channels))
        self.bias = nn.Parameter(torch.empty(channels))
        # the initialisation of nn.Conv1d
        bound = kernel_size**-0.5
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def start_as_identity(self) -> None:
        """Let y be x at the start: what came before is added as it proves useful."""
        with torch.no_grad():
            self.weight.zero_()
            self.weight[0] = 1
            self.bias.zero_()

    def initial_state(self, batch_size: int) -> Tensor:
        kernel_size, channels = self.weight.shape
        return self.weight.new_zeros(batch_size, kernel_size - 1, channels)

    def forward(self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time = x.shape[1]
        n_before = len(self.weight) - 1
        if state is None:
            state = self.initial_state(len(x))
        # len(x) would fix the batch of an exported step
        check_shapes(x.shape, (x.shape[0], n_before, len(self.bias)), state, reset)
        if x.device.type == "cpu" and choose_body("auto", x) == "cpu":
            if x.shape[2] != len(self.bias):
                raise ValueError(f"x [B, T, {len(self.bias)}] cannot have the shape {tuple(x.shape)}")
            return operators.causal_conv(x, state, self.weight, self.bias, reset)
        inputs = torch.cat([state.to(x.dtype), x], 1)

        # the number of each input's episode [B, n_before + T]; the state belongs to the first
        episode = None
        if reset is not None:
            episode = F.pad(reset.cumsum(1), (n_before, 0))

        # one term of the sum for each lag, over all steps at once
        y = self.bias.to(x.dtype)
        for lag, weight in enumerate(self.weight.to(x.dtype)):
            first = n_before - lag
            shown = inputs[:, first : first + time]
            if episode is not None and lag:
                is_other = episode[:, n_before:] != episode[:, first : first + time]
                shown = shown.masked_fill(is_other[..., None], 0)
            y = y + weight * shown

        # the next state: the last inputs, zeros where they are of an episode that is over
        last = inputs[:, time:]
        if episode is None:
            # a view would keep the whole sequence allocated
            last = last.clone()
        else:
            is_over = episode[:, time:] != episode[:, -1:]
            last = last.masked_fill(is_over[..., None], 0)
        return y, last

    def step(self, x: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if reset is not None:
            state = forget(state, reset)
        inputs = torch.cat([state.to(x.dtype), x[:, None]], 1)
        y = self.bias + (inputs * self.weight.flip(0)).sum(1)
        return y.to(x.dtype), inputs[:, 1:]
