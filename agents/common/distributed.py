"""Several processes that learn as one, as torchrun starts them: which one this is, and what they tell each other."""

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

from unroll.errors import TrainingError, one_line

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # while the first process plays an evaluation, the others wait
LOST = ("gloo", "onnection closed", "onnection reset", "NCCL")  # what is said where another process is gone


class World:
    """All processes that learn together. Without torchrun there is one, the first, and nothing is said.

    Every method that exchanges something is called by all processes at the same moment.
    """

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def size(self) -> int:
        """How many processes learn together."""
        return dist.get_world_size() if dist.is_initialized() else 1

    @contextlib.contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Join the processes that torchrun has started with this one, for as long as the ``with`` lasts.

        They speak over gloo, and over NCCL for what is on GPUs; each process takes a GPU of its own.

        Raises:
            TrainingError: another process is gone; there are more processes than GPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield
            return
        backend = "gloo"
        if device != "cpu" and torch.cuda.is_available():
            own, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if own >= gpus:
                raise TrainingError(
                    f"process {own}, from 0, sees {gpus} GPU{'s' * (gpus > 1)}: each needs one of its own; start "
                    "fewer, or give --device cpu"
                )
            torch.cuda.set_device(own)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
                raise
            raise TrainingError(
                f"rank {self.rank} lost another one; --resume true goes on from the last checkpoint "
                f"({one_line(error, 100)})"
            ) from error
        finally:
            dist.destroy_process_group()

    def share(self, n: int) -> slice:
        """The part of ``n`` rows that belongs to this process."""
        size = n // self.size
        return slice(self.rank * size, (self.rank + 1) * size)

    def check_divides(self, name: str, n: int) -> None:
        """Raise TrainingError unless every process gets as many of the ``n``."""
        if n % self.size:
            raise TrainingError(
                f"{name} {n} cannot be divided among {self.size} processes; a multiple of {self.size} can"
            )

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        if self.size == 1:
            return flag
        said = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def all_rows(self, rows: Tensor) -> Tensor:
        """[B, …] of every process, one after the other: [size · B, …]."""
        if self.size == 1:
            return rows
        sent = rows.contiguous()
        if sent.dtype == torch.bool:  # which gloo does not send
            sent = sent.view(torch.uint8)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
        return torch.cat(parts).view(rows.dtype)

    def all_of(self, values: list[T]) -> list[T]:
        """The lists of plain values of every process, one after the other."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are means over all processes, by DistributedDataParallel."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            # The parameter's new name, forward_sync_buffers, is not in PyTorch 2.10.
            warnings.simplefilter("ignore", FutureWarning)
            # Now and then the learned initial state of a backbone is unused: where no episode begins.
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True, bucket_cap_mb=25
            )

    def share_statistics(self, normalizer: VecNormalize) -> None:
        """Make a new VecNormalize keep its running statistics over the environments of all processes."""
        if self.size == 1:
            return
        normalizer.ret_rms = SharedMeanStd(shape=())
        if not normalizer.norm_obs:
            return
        if isinstance(normalizer.obs_rms, dict):
            normalizer.obs_rms = {key: SharedMeanStd(shape=one.mean.shape) for key, one in normalizer.obs_rms.items()}
        else:
            normalizer.obs_rms = SharedMeanStd(shape=normalizer.obs_rms.mean.shape)


class SharedMeanStd(RunningMeanStd):
    """Running statistics that take in what every process is given, so that all processes have those of one."""

    def update(self, arr: np.ndarray) -> None:
        super().update(world.all_rows(torch.from_numpy(np.ascontiguousarray(arr))).numpy())


world = World()
