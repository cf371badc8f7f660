"""Dropout whose random numbers are cheap on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of a random number of 16 bits


class Dropout(nn.Dropout):
    """``nn.Dropout``, whose Bernoulli draws are a tenth of a small model's update on a CPU. There, four channels share
    the 64 bits of one draw: 16 bits each, so that ``p`` is rounded to a multiple of 1/65536."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not self.training or dropped in (0, LEVELS):
            return super().forward(x)
        draws = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - dropped)))
