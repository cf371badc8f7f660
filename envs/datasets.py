"""Episodes: what every dataset becomes, whatever file it came from; and the sampling of sequences from it."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import torch


class DatasetError(ValueError):
    """A dataset that cannot be found, read or trained on; the message is one line for the user."""


def one_line(error: BaseException) -> str:
    """What another library said, fit for a one-line message."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Recorded episodes as flat arrays: N steps of E episodes, one after the other.

    Row ``t`` holds the observation that the action was chosen on, that action, and the reward that it brought.
    Only the last step of an episode can be ``terminated`` or ``truncated``; if it is neither, the recording stopped there.
    """

    observations: np.ndarray  # [N, observation_dim] float32
    actions: np.ndarray  # [N, action_dim] float32 (Box) or [N] int64 (Discrete)
    rewards: np.ndarray  # [N] float32
    lengths: np.ndarray  # [E] int64
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    action_space: gym.spaces.Box | gym.spaces.Discrete
    name: str
    final_observations: np.ndarray | None = None  # [E, observation_dim]: after the last step, NaN where unknown
    env_id: str | None = None
    reference_returns: tuple[float, float] | None = None  # mean return of a random and of an expert policy
    reference_name: str | None = None  # where these two numbers come from

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        return len(self.rewards)

    @property
    def observation_dim(self) -> int:
        return self.observations.shape[1]

    @property
    def starts(self) -> np.ndarray:
        """Row of each episode's first step, [E]."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, [E] float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    @property
    def returns_to_go(self) -> np.ndarray:
        """Sum of the rewards from each step to its episode's end, [N] float64."""
        before = np.cumsum(self.rewards, dtype=np.float64) - self.rewards
        ends = before[self.starts] + self.returns
        return np.repeat(ends, self.lengths) - before

    def select(self, episodes: np.ndarray) -> Episodes:
        """The given episodes (indices), in the given order."""
        starts, lengths = self.starts[episodes], self.lengths[episodes]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(starts, lengths) + within
        final = self.final_observations
        return dataclasses.replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            lengths=lengths,
            terminated=self.terminated[episodes],
            truncated=self.truncated[episodes],
            final_observations=None if final is None else final[episodes],
        )

    def top(self, fraction: float) -> Episodes:
        """The best episodes by return until they make up ``fraction`` of the steps: the data of "10 % BC" (Chen et al. 2021, 5.1)."""
        if not 0 < fraction <= 1:
            raise ValueError(f"top fraction must be in (0, 1], not {fraction}")
        best = np.argsort(-self.returns, kind="stable")
        n = 1 + int(np.searchsorted(np.cumsum(self.lengths[best]), fraction * self.n_steps))
        return self if n >= len(self) else self.select(best[:n])


class SequenceSampler:
    """Windows of ``context`` steps from flat tensors that stay on ``device``; a batch is a function of (seed, step) alone.

    A window starts at a step drawn uniformly (so an episode is drawn in proportion to its length, as in the Decision
    Transformer) and is padded on the right where the episode ends. An episode that fits into the window is taken whole.
    """

    def __init__(self, episodes: Episodes, context: int, device: torch.device | str = "cpu"):
        def on_device(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(x).to(device=device, dtype=dtype)

        starts, lengths = episodes.starts, episodes.lengths
        discrete = isinstance(episodes.action_space, gym.spaces.Discrete)
        self.context = context
        self.n_steps = episodes.n_steps
        self.observation = on_device(episodes.observations, torch.float32)
        self.action = on_device(episodes.actions, torch.int64 if discrete else torch.float32)
        self.previous_action = self.action.roll(1, 0)
        # no action came before an episode's first: zeros, or for discrete actions one more class
        self.previous_action[on_device(starts, torch.int64)] = int(episodes.action_space.n) if discrete else 0  # type: ignore[union-attr]
        self.return_to_go = on_device(episodes.returns_to_go, torch.float32)
        self.timestep = on_device(np.arange(self.n_steps) - np.repeat(starts, lengths), torch.int64)
        self.end = on_device(np.repeat(starts + lengths, lengths), torch.int64)
        fits = np.repeat(lengths <= context, lengths)
        rows = np.arange(self.n_steps)
        self.first = on_device(np.where(fits, np.repeat(starts, lengths), rows), torch.int64)
        self.offsets = torch.arange(context, device=device)

    def sample(self, batch_size: int, seed: int, step: int) -> dict[str, torch.Tensor]:
        """Batch ``step`` of the run with ``seed``: tensors [B, context, …] and ``mask`` [B, context], false on padding."""
        random = np.random.Generator(np.random.Philox(key=seed, counter=step))
        drawn = torch.from_numpy(random.integers(self.n_steps, size=batch_size)).to(self.first.device)
        return self.windows(self.first[drawn])

    def windows(self, first: torch.Tensor) -> dict[str, torch.Tensor]:
        """The windows that start at the rows ``first`` [B]."""
        rows = first[:, None] + self.offsets
        mask = rows < self.end[first][:, None]
        rows = rows.clamp_max(self.n_steps - 1)
        batch = {key: getattr(self, key)[rows] for key in SEQUENCE_KEYS}
        return batch | {"action": self.action[rows], "mask": mask}


SEQUENCE_KEYS = ("observation", "previous_action", "return_to_go", "timestep")  # also the keys of ReturnToGo's observation
