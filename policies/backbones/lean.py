"""Layers as plain functions: in a step of a few rows the call of an ``nn.Module`` costs as much as its arithmetic.

Hooks on such a layer are never called.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.forward(x)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def drop(layer: nn.Dropout, x: Tensor) -> Tensor:
    """x itself, without a dispatch, unless the layer is training."""
    return layer(x) if layer.training else x


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context of the tensors' own types; where there is no autocast it costs nothing."""
    autocast = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext()
