"""Metrics of updates that have not been logged yet: they stay on the device, and go with a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.agents.common.distributed import mean_of_ranks

PREFIX = "unlogged."


def mean_metrics(metrics: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over updates and processes, read from the device at once."""
    names = list(metrics[0])
    values = torch.stack([torch.stack([m[name] for m in metrics]).mean() for name in names])
    return dict(zip(names, mean_of_ranks(values).tolist(), strict=True))


def pack_metrics(metrics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As tensors [updates] for a checkpoint; none where all has been logged."""
    return {PREFIX + name: torch.stack([m[name] for m in metrics]) for name in (metrics[0] if metrics else ())}


def unpack_metrics(tensors: dict[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    """What ``pack_metrics`` gave, among the tensors of a checkpoint.

    Raises:
        ValueError: it did not give this.
    """
    columns = {name.removeprefix(PREFIX): v.to(device) for name, v in tensors.items() if name.startswith(PREFIX)}
    if any(column.ndim != 1 or not bool(torch.isfinite(column).all()) for column in columns.values()):
        raise ValueError("metrics that were not logged are one finite number for each update")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
