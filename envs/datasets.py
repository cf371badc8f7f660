"""Episodes: what every dataset becomes, whatever file it came from; and the sampling of sequences from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.scan import Scan

STEPS = 1 << 21  # whose rewards are summed together


class DatasetError(ValueError):
    """A dataset that cannot be found, read or trained on; the message is one line for the user."""


def one_line(error: BaseException) -> str:
    """What another library said, fit for a one-line message."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Recorded episodes as flat arrays: N steps of E episodes, one after the other.

    Row ``t`` holds the observation that the action was chosen on, that action, and the reward that it brought.
    Only the last step of an episode can be ``terminated`` or ``truncated``; if it is neither, the recording stopped.
    Arrays that are large beside the memory are memory-mapped (envs/cache.py): whoever reads all of their values reads
    them in blocks (envs/scan.py).
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
    scan: Scan | None = None  # of these values, where it is known already; see envs.scan.scan

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
        return np.concatenate([returns for _, _, returns in self._sums()])

    @property
    def returns_to_go(self) -> np.ndarray:
        """Sum of the rewards from each step to its episode's end, [N] float64."""
        return np.concatenate(list(self.returns_to_go_in_blocks()))

    def returns_to_go_in_blocks(self) -> Iterator[np.ndarray]:
        """The returns-to-go, those of some whole episodes at a time."""
        total = 0.0  # summed on over all episodes, so that the blocks' size does not show in the sums
        for rewards, episodes, returns in self._sums():
            sums = np.cumsum(np.append(total, rewards))[1:]
            total, before = sums[-1], sums - rewards
            lengths = self.lengths[episodes]
            ends = before[np.cumsum(lengths) - lengths] + returns
            yield np.repeat(ends, lengths) - before

    def _sums(self) -> Iterator[tuple[np.ndarray, slice, np.ndarray]]:
        """(rewards in float64, their episodes, these episodes' returns) of some whole episodes at a time."""
        ends, first = np.cumsum(self.lengths), 0
        while first < len(self):
            start = ends[first] - self.lengths[first]
            stop = max(first + 1, int(np.searchsorted(ends, start + STEPS, side="right")))
            rewards = np.asarray(self.rewards[start : ends[stop - 1]], np.float64)
            episodes = slice(first, stop)
            yield rewards, episodes, np.add.reduceat(rewards, ends[episodes] - self.lengths[episodes] - start)
            first = stop

    def select(self, episodes: np.ndarray) -> Episodes:
        """The given episodes (indices), in the given order. Of memory-mapped arrays no value is read."""
        starts, lengths = self.starts[episodes], self.lengths[episodes]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(starts, lengths) + within
        final = self.final_observations
        return dataclasses.replace(
            self,
            observations=_take(self.observations, rows),
            actions=_take(self.actions, rows),
            rewards=_take(self.rewards, rows),
            lengths=lengths,
            terminated=self.terminated[episodes],
            truncated=self.truncated[episodes],
            final_observations=None if final is None else final[episodes],
            scan=None,
        )

    def top(self, fraction: float) -> Episodes:
        """The best episodes by return that make up ``fraction`` of the steps, as in "10 % BC" (Chen et al. 2021)."""
        if not 0 < fraction <= 1:
            raise DatasetError(f"top fraction must be in (0, 1], not {fraction}")
        best = np.argsort(-self.returns, kind="stable")
        n = 1 + int(np.searchsorted(np.cumsum(self.lengths[best]), fraction * self.n_steps))
        return self if n >= len(self) else self.select(best[:n])


class Rows:
    """Some rows of a memory-mapped array, in any order, as an array that is gathered where it is read."""

    def __init__(self, values: np.ndarray, rows: np.ndarray):
        self.values, self.rows = values, rows
        self.shape, self.dtype, self.ndim = (len(rows), *values.shape[1:]), values.dtype, values.ndim

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.values[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def is_mapped(values: Any) -> bool:
    return isinstance(values, np.memmap | Rows)


def _take(values: np.ndarray, rows: np.ndarray) -> Any:
    if isinstance(values, Rows):
        return Rows(values.values, values.rows[rows])
    return Rows(values, rows) if is_mapped(values) else values[rows]


class SequenceSampler:
    """Windows of ``context`` steps from tensors that stay on ``device``; a batch is a function of (seed, step) alone.

    A window starts at a step drawn uniformly (so an episode is drawn in proportion to its length, as in the Decision
    Transformer) and is padded on the right where the episode ends. An episode that fits into the window is taken whole.
    """

    def __init__(self, episodes: Episodes, context: int, device: torch.device | str = "cpu"):
        def on_device(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(x).to(device=device, dtype=dtype)

        starts, lengths = episodes.starts, episodes.lengths
        rows = np.arange(episodes.n_steps)
        timestep = rows - np.repeat(starts, lengths)
        left = np.repeat(lengths, lengths) - timestep  # steps to the episode's end, this one included
        discrete = isinstance(episodes.action_space, gym.spaces.Discrete)
        action = on_device(episodes.actions, torch.int64 if discrete else torch.float32)
        previous_action = action.roll(1, 0)
        # no action came before an episode's first: zeros, or for discrete actions one more class
        nothing = int(episodes.action_space.n) if discrete else 0  # type: ignore[union-attr]
        previous_action[on_device(starts, torch.int64)] = nothing
        flat = {
            "observation": on_device(episodes.observations, torch.float32),
            "previous_action": previous_action,
            "return_to_go": on_device(episodes.returns_to_go, torch.float32),
            "timestep": on_device(timestep, torch.int64),
            "action": action,
        }
        self.context = context
        self.n_steps = episodes.n_steps
        self.sequences = {key: _windows(values, context) for key, values in flat.items()}
        self.masks = torch.ones(context + 1, context, dtype=torch.bool, device=device).tril(-1)  # row n: n steps valid
        self.valid = on_device(np.minimum(left, context), torch.int64)
        self.first = on_device(np.where(np.repeat(lengths <= context, lengths), rows - timestep, rows), torch.int64)

    def sample(self, batch_size: int, seed: int, step: int) -> dict[str, torch.Tensor]:
        """Batch ``step`` of the run ``seed``: tensors [B, context, …] and ``mask`` [B, context], false on padding."""
        drawn = torch.from_numpy(draw(self.n_steps, batch_size, seed, step))
        if self.first.is_cuda:  # from pinned memory, which CUDA reads while the program goes on
            drawn = drawn.pin_memory().to(self.first.device, non_blocking=True)
        return self.windows(self.first.index_select(0, drawn))

    def windows(self, first: torch.Tensor) -> dict[str, torch.Tensor]:
        """The windows that start at the rows ``first`` [B]."""
        batch = {key: sequences.index_select(0, first) for key, sequences in self.sequences.items()}
        return batch | {"mask": self.masks.index_select(0, self.valid.index_select(0, first))}


def draw(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows of batch ``step``, [batch_size] of 0 to n - 1."""
    # the step is the counter's second word: in the first, one step's numbers would be the next one's, shifted
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))
    return random.integers(n, size=batch_size)


def _windows(values: torch.Tensor, context: int) -> torch.Tensor:
    """[N, …] seen as [N, context, …], where row t holds the rows t, t + 1, …: a view, so that a window is one copy."""
    padded = torch.cat([values, values[-1:].expand(context - 1, *values.shape[1:])])
    return padded.unfold(0, context, 1).movedim(-1, 1)


# what a decision policy sees; also the keys of ReturnToGo's observation
SEQUENCE_KEYS = ("observation", "previous_action", "return_to_go", "timestep")
