"""Several processes that learn as one, as torchrun starts them: which one this is, and what they tell each other.

Without torchrun there is one process, the first, and nothing is said.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unroll.errors import TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # while the first plays an evaluation, the others wait


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(n: int) -> slice:
    """The part of ``n`` rows that is this process's own."""
    size = n // n_ranks()
    return slice(rank() * size, (rank() + 1) * size)


def check_shares(name: str, n: int) -> None:
    """Raise TrainingError unless every process gets as many of the ``n``."""
    if n % n_ranks():
        raise TrainingError(f"{name} {n} cannot be divided among {n_ranks()} processes; a multiple of {n_ranks()} can")


@contextlib.contextmanager
def joined_ranks(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started with this one, for as long as the ``with`` lasts: over gloo, and
    NCCL for what is on GPUs, of which each process takes its own.

    Raises:
        TrainingError: another process is gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError) or not _is_lost(error):
            raise
        said = " ".join(str(error).split())[:100]
        raise TrainingError(
            f"rank {rank()} lost another one; --resume true goes on from the last checkpoint ({said})"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "onnection closed", "onnection reset", "NCCL")
    )


def any_rank(flag: bool) -> bool:
    """Whether it is true of any process; all ask at the same moment."""
    if n_ranks() == 1:
        return flag
    said = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


def mean_of_ranks(values: Tensor) -> Tensor:
    if n_ranks() > 1:
        dist.all_reduce(values)
        values /= n_ranks()
    return values


def all_rows(rows: Tensor) -> Tensor:
    """[B, …] of every process, one after the other: [ranks · B, …]."""
    if n_ranks() == 1:
        return rows
    sent = rows.contiguous().view(torch.uint8) if rows.dtype == torch.bool else rows.contiguous()
    parts = [torch.empty_like(sent) for _ in range(n_ranks())]
    dist.all_gather(parts, sent)
    return torch.cat(parts).view(rows.dtype)


def all_of(values: list[T]) -> list[T]:
    """The lists of plain values of every process, one after the other."""
    if n_ranks() == 1:
        return values
    parts: list[Any] = [None] * n_ranks()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def parallel(module: nn.Module) -> nn.Module:
    """The module, whose gradients are the means over all processes, by DistributedDataParallel."""
    if n_ranks() == 1:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # forward_sync_buffers, its new name, is not in PyTorch 2.10
        # unused are, now and then, the learned initial states of a backbone: where no episode begins
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True, bucket_cap_mb=25)


class SharedMeanStd(RunningMeanStd):
    """Takes in what every process is given, in every process: their statistics are those of one."""

    def update(self, arr: np.ndarray) -> None:
        super().update(all_rows(torch.from_numpy(np.ascontiguousarray(arr))).numpy())


def share_statistics(normalizer: VecNormalize) -> None:
    """Of a new normalizer: its statistics are those of all processes from now on."""
    normalizer.ret_rms = SharedMeanStd(shape=())
    if not normalizer.norm_obs:
        return
    if isinstance(normalizer.obs_rms, dict):
        normalizer.obs_rms = {key: SharedMeanStd(shape=one.mean.shape) for key, one in normalizer.obs_rms.items()}
    else:
        normalizer.obs_rms = SharedMeanStd(shape=normalizer.obs_rms.mean.shape)
