"""Features of observations that hold images: those of games, and small grids of codes as MiniGrid shows them."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn

SMALLEST_IMAGE = 36  # pixels a side that leave one for the last of NatureCNN's convolutions (Mnih et al. 2015)
BYTES = 256


class GridExtractor(BaseFeaturesExtractor):
    """A features extractor for images that are too small for convolutions with strides: grids of codes.

    MiniGrid's view is 7 × 7 cells of three codes: object, colour, state. A code is a name and no brightness, so each
    value of each channel has a learned vector, and a cell is the sum of the vectors of its channels. A linear map of
    all cells follows. Values are bytes, divided by 255 as Stable-Baselines3 does.

    Args:
        observation_space: images [C, H, W] of bytes.
        features_dim: width of the output.
        cell_dim: width of a cell's vector.
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 64, cell_dim: int = 8):
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.vectors = nn.Embedding(channels * BYTES, cell_dim)
        self.register_buffer("first", BYTES * torch.arange(channels).view(channels, 1, 1), persistent=False)
        self.linear = nn.Linear(height * width * cell_dim, features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Compute the features [B, features_dim] of images [B, C, H, W] within 0 … 1."""
        codes = (observations * (BYTES - 1)).round().long() + self.first
        cells = self.vectors(codes).sum(1)
        return torch.relu(self.linear(cells.flatten(1)))
