"""Observation statistics that are saved with the weights, so that a policy can never be used without them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# What rests in a simulator varies too, by the rounding of float32 beside numbers of about 1: that must not be shown as
# if it were as large as all else.
ROUNDING = 1e-7


class Normalizer(nn.Module):
    """(x - mean) / std per dimension. A dimension that never varied in the data is only centred."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Take these statistics, [dim] float64."""
        # a deviation this small beside the mean is the rounding of float32, and dividing by it would blow that up
        is_constant = std <= np.maximum(ROUNDING, 1e-6 * np.abs(mean))
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(is_constant, 1.0, std)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
