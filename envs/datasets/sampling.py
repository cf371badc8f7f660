"""Sequences drawn from episodes: batches that are a function of (seed, step) alone."""

from __future__ import annotations

import mmap

import gymnasium as gym
import numpy as np
import torch

from unroll.envs.datasets.episodes import Episodes, Rows, is_mapped
from unroll.envs.datasets.store import LARGE


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


Batch = dict[str, torch.Tensor]


class HostSampler:
    """Windows of ``context`` steps that are gathered from numpy arrays; see SequenceSampler for what they hold.

    While a batch is learned from, the kernel reads the pages of the next: which these are is known, because a batch is
    a function of (seed, step) alone. Of each step only its return-to-go is held in memory, 4 bytes.
    """

    def __init__(self, episodes: Episodes, context: int, device: torch.device | str = "cpu"):
        self.context, self.n_steps, self.device = context, episodes.n_steps, torch.device(device)
        self.observations, self.actions = Column(episodes.observations), Column(episodes.actions)
        self.starts, self.lengths = episodes.starts, episodes.lengths
        self.return_to_go = np.empty(self.n_steps, np.float32)
        row = 0
        for values in episodes.returns_to_go_in_blocks():
            self.return_to_go[row : row + len(values)] = values
            row += len(values)
        space = episodes.action_space
        self.no_action = int(space.n) if isinstance(space, gym.spaces.Discrete) else 0

    def sample(self, batch_size: int, seed: int, step: int) -> Batch:
        """Batch ``step`` of the run ``seed``: tensors [B, context, …] and ``mask`` [B, context], false on padding."""
        batch = self.windows(self._first(batch_size, seed, step))
        following = self._first(batch_size, seed, step + 1)
        for column in (self.observations, self.actions):
            column.fetch(following, self.context)
        if self.device.type == "cuda":  # from pinned memory, which CUDA reads while the program goes on
            batch = {key: value.pin_memory() for key, value in batch.items()}
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def _first(self, batch_size: int, seed: int, step: int) -> np.ndarray:
        drawn = draw(self.n_steps, batch_size, seed, step)
        episode = np.searchsorted(self.starts, drawn, side="right") - 1
        return np.where(self.lengths[episode] <= self.context, self.starts[episode], drawn)

    def windows(self, first: np.ndarray) -> Batch:
        """The windows that start at the rows ``first`` [B], on the host; past the last row it is repeated."""
        steps = np.arange(self.context)
        rows = np.minimum(first[:, None] + steps, self.n_steps - 1)
        episode = np.searchsorted(self.starts, rows, side="right") - 1
        timestep = rows - self.starts[episode]
        previous_action = self.actions[np.maximum(rows - 1, 0)]
        previous_action[timestep == 0] = self.no_action
        left = self.lengths[episode[:, 0]] - timestep[:, 0]
        batch = {
            "observation": self.observations[rows],
            "previous_action": previous_action,
            "return_to_go": self.return_to_go[rows],
            "timestep": timestep,
            "action": self.actions[rows],
            "mask": steps < left[:, None],
        }
        return {key: torch.from_numpy(values) for key, values in batch.items()}


Sampler = SequenceSampler | HostSampler


def make_sampler(episodes: Episodes, context: int, device: torch.device | str) -> Sampler:
    """The fastest sampler for which there is memory: a set that is mapped, or large for the GPU, stays where it is."""
    device, size = torch.device(device), episodes.observations.nbytes + episodes.actions.nbytes
    large_for_gpu = device.type == "cuda" and size > LARGE * torch.cuda.mem_get_info(device)[0]
    kind = HostSampler if is_mapped(episodes.observations) or large_for_gpu else SequenceSampler
    return kind(episodes, context, device)


class Column:
    """An array whose rows are read at random, and can be fetched before."""

    def __init__(self, values: np.ndarray | Rows):
        self.rows = values.rows if isinstance(values, Rows) else None
        self.mapped = values.values if isinstance(values, Rows) else values
        self.values = np.asarray(self.mapped)  # a memmap's own indexing is slower
        if isinstance(self.mapped, np.memmap) and hasattr(mmap, "MADV_RANDOM"):
            self._advise(mmap.MADV_RANDOM)  # the pages around those that are wanted are not wanted

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows if self.rows is None else self.rows[rows]]

    def fetch(self, first: np.ndarray, n: int) -> None:
        """Have the kernel read the ``n`` rows from each of ``first`` on, and the one before, without waiting for it.

        Without this each page is waited for when it is touched, one after the other.
        """
        if not isinstance(self.mapped, np.memmap) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        width = self.values.strides[0]
        starts = (first if self.rows is None else self.rows[first]) - 1
        starts = np.maximum(starts * width + self.mapped.offset % mmap.ALLOCATIONGRANULARITY, 0)
        for start in (starts // mmap.PAGESIZE * mmap.PAGESIZE).tolist():
            self._advise(mmap.MADV_WILLNEED, start, (n + 1) * width + mmap.PAGESIZE)

    def _advise(self, *arguments: int) -> None:
        self.mapped._mmap.madvise(*arguments)  # type: ignore[attr-defined]
