"""VecNormalize's running statistics over the environments of all processes."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from agents.ranks import all_rows


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
