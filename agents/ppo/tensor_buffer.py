"""A rollout, and running statistics of what is seen and paid, as tensors of one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from unroll.policies.backbones.scan import linear_scan


class TensorRolloutBuffer(RolloutBuffer):
    """Stable-Baselines3's RolloutBuffer with tensors [T, N, …] on ``device`` in the place of arrays.

    Beside the library's fields it has ``raw_rewards`` [T, N], which no VecNormalize has scaled and to which no value
    was added. ``values`` are computed when the rollout is over.
    """

    # The library has arrays under these names.
    observations: Any
    actions: Any
    rewards: Any
    raw_rewards: Tensor
    returns: Any
    advantages: Any
    episode_starts: Any
    values: Any
    log_probs: Any

    def reset(self) -> None:
        sizes = (self.buffer_size, self.n_envs)
        self.observations = self._empty(*sizes, *self.obs_shape, dtype=torch_type(self.observation_space.dtype))
        self.actions = self._empty(*sizes, self.action_dim, dtype=torch_type(self.action_space.dtype))
        self.episode_starts = self._empty(*sizes, dtype=torch.bool)
        for name in ("rewards", "raw_rewards", "returns", "advantages", "values", "log_probs"):
            setattr(self, name, self._empty(*sizes, dtype=torch.float32))
        self.pos = 0
        self.full = False

    def _empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def see(self, observations: Tensor, episode_starts: Tensor) -> None:
        """Copy what the environments show before a step: they may write into it."""
        self.observations[self.pos] = observations
        self.episode_starts[self.pos] = episode_starts

    def act(self, actions: Tensor, log_probs: Tensor, raw_rewards: Tensor, rewards: Tensor) -> None:
        """Copy what was done, how likely it was and what was paid for it, which ends the step."""
        self.actions[self.pos] = actions.view(self.n_envs, -1)
        self.log_probs[self.pos] = log_probs
        self.raw_rewards[self.pos] = raw_rewards
        self.rewards[self.pos] = rewards
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Tensor) -> None:  # type: ignore[override]
        """Compute the advantages of GAE and the returns, by one scan from the last step to the first.

            δ[t] = r[t] + γ·V[t+1] - V[t]                    where an episode is over, V[t+1] and A[t+1] are 0
            A[t] = δ[t] + γ·λ·A[t+1]                         (Schulman et al. 2016, arXiv 1506.02438, equation 16)

        ``last_values`` [N] are V[T], ``dones`` [N] says where an episode was over after the last step.
        """
        goes_on = ~torch.cat([self.episode_starts[1:], dones[None]])
        next_values = torch.cat([self.values[1:], last_values.view(1, -1)]) * goes_on
        errors = self.rewards + self.gamma * next_values - self.values
        decay = self.gamma * self.gae_lambda * goes_on
        self.advantages = linear_scan(decay[None], errors[None], reverse=True)[0]
        self.returns = self.advantages + self.values


class TensorNormalizer:
    """VecNormalize's statistics and arithmetic on a device, for as long as a rollout lasts.

    Between rollouts they are in the VecNormalize, where checkpoints, evaluations and exports find them. One row holds
    the numbers of an observation, if they are normalised, and last the discounted return: [D + 1], float64.
    """

    def __init__(self, normalizer: VecNormalize, device: torch.device):
        self.normalizer = normalizer
        running = [normalizer.ret_rms]
        if normalizer.norm_obs:
            assert isinstance(normalizer.obs_rms, RunningMeanStd)
            running.insert(0, normalizer.obs_rms)
        self.running = running
        self.mean = self._row([one.mean for one in running], device)
        self.variance = self._row([one.var for one in running], device)
        self.count = self._row([np.full(one.mean.shape, one.count) for one in running], device)
        self.returns = torch.from_numpy(normalizer.returns).to(device)

    @staticmethod
    def _row(parts: list[np.ndarray], device: torch.device) -> Tensor:
        return torch.from_numpy(np.concatenate([np.ravel(part) for part in parts])).to(device)

    def step(self, observations: Tensor, rewards: Tensor, over: Tensor) -> Tensor:
        """Take new observations [N, …] and rewards [N] into the statistics, and return the rewards normalised.

        ``over`` [N] says where an episode is over.
        """
        if self.normalizer.training:
            self.returns = self.returns * self.normalizer.gamma + rewards
            columns = [self.returns[:, None]]
            if self.normalizer.norm_obs:
                columns.insert(0, observations.flatten(1).double())
            self._update(torch.cat(columns, 1))
        self.returns = self.returns.masked_fill(over, 0.0)
        if not self.normalizer.norm_reward:
            return rewards
        scaled = rewards / torch.sqrt(self.variance[-1] + self.normalizer.epsilon)
        return scaled.clamp(-self.normalizer.clip_reward, self.normalizer.clip_reward).float()

    def _update(self, rows: Tensor) -> None:
        """Add rows [N, D + 1] to the moments, as RunningMeanStd does (Chan et al.'s parallel algorithm)."""
        variance, mean = torch.var_mean(rows, 0, correction=0)
        n = len(rows)
        total = self.count + n
        delta = mean - self.mean
        squares = self.variance * self.count + variance * n + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.variance = squares / total
        self.count = total

    def observe(self, observations: Tensor) -> Tensor:
        """Return observations [N, …] normalised by the statistics as they are now."""
        if not self.normalizer.norm_obs:
            return observations
        shape = observations.shape[1:]
        mean = self.mean[:-1].view(shape)
        deviation = torch.sqrt(self.variance[:-1] + self.normalizer.epsilon).view(shape)
        clip = self.normalizer.clip_obs
        return ((observations - mean) / deviation).clamp(-clip, clip).float()

    def numbers(self) -> dict[str, Tensor]:
        """Return what ``write_back`` takes, on the device."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count, "discounted": self.returns}

    def write_back(self, numbers: dict[str, np.ndarray]) -> None:
        """Give the VecNormalize the numbers, which are on the host by now."""
        first = 0
        for one in self.running:
            own = slice(first, first + one.mean.size)
            one.mean = numbers["mean"][own].reshape(one.mean.shape)
            one.var = numbers["variance"][own].reshape(one.mean.shape)
            one.count = float(numbers["count"][first])
            first = own.stop
        self.normalizer.returns = numbers["discounted"]


def torch_type(dtype: Any) -> torch.dtype:
    """Return PyTorch's name of a NumPy type."""
    return torch.from_numpy(np.zeros(0, dtype)).dtype


def to_host(parts: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors of one device to the host in one transfer. Their numbers are exact in float64."""
    packed = torch.cat([part.reshape(-1).double() for part in parts.values()]).cpu()
    sizes = [part.numel() for part in parts.values()]
    found = {}
    for (name, part), numbers in zip(parts.items(), packed.split(sizes), strict=True):
        found[name] = numbers.to(part.dtype).view(part.shape).numpy()
    return found
