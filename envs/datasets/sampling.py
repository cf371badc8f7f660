"""Sequences drawn from episodes, as batches that are a function of (seed, step) alone.

A window of ``context`` steps starts at a step drawn uniformly, so an episode is drawn in proportion
to its length, as in the Decision Transformer. It is padded on the right where the episode ends. An
episode that fits into the window is taken whole.

Two samplers give the same batches, bit for bit. SequenceSampler holds all data on the device.
HostSampler gathers from arrays that stay on the host, where they may be memory-mapped. This is the
one module of the package that needs torch.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import torch

from unroll.envs.datasets.episodes import Episodes, Rows, is_mapped
from unroll.envs.datasets.store import LARGE

# What a decision policy sees. These are also the keys of ReturnToGo's observation.
SEQUENCE_KEYS = ("observation", "previous_action", "return_to_go", "timestep")

# SEQUENCE_KEYS and "action", [B, context, …], and "mask" [B, context], false on padding.
# Observations are float32, or uint8 where they are rows of bytes.
Batch = dict[str, torch.Tensor]


def draw(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Draw the first rows of the windows of batch `step`, [batch_size] of 0 to n - 1."""
    return _generator(seed, step).integers(n, size=batch_size)


def _generator(seed: int, step: int) -> np.random.Generator:
    # The step is the counter's second word. In the first word, one step's numbers would be the next
    # one's, shifted.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, step, 0, 0]))


class Draws:
    """Draws the first rows of windows: every step alike, or each of several datasets with its odds."""

    def __init__(self, episodes: Episodes):
        self.n_steps = episodes.n_steps
        self.odds = episodes.odds
        if self.odds is None or episodes.origin is None:
            return
        # The steps in the order of their datasets. Those of one dataset are drawn alike.
        self.order = np.argsort(episodes.origin, kind="stable")
        self.starts = episodes.starts[self.order]
        self.lengths = episodes.lengths[self.order]
        self.ends = np.cumsum(self.lengths)
        self.steps = np.bincount(episodes.origin, episodes.lengths, minlength=len(self.odds)).astype(np.int64)
        self.offsets = np.cumsum(self.steps) - self.steps

    def draw(self, batch_size: int, seed: int, step: int) -> np.ndarray:
        """Draw rows for batch `step`, [batch_size]."""
        if self.odds is None:
            return draw(self.n_steps, batch_size, seed, step)
        random = _generator(seed, step)
        dataset = random.choice(len(self.odds), size=batch_size, p=self.odds)
        place = self.offsets[dataset] + random.integers(self.steps[dataset])
        episode = np.searchsorted(self.ends, place, side="right")
        return self.starts[episode] + place - (self.ends[episode] - self.lengths[episode])


class SequenceSampler:
    """A sampler that cuts windows out of tensors that stay on `device`.

    ``columns`` are more numbers of every step, [N] each. Batches have them under their names.
    """

    def __init__(
        self,
        episodes: Episodes,
        context: int,
        device: torch.device | str = "cpu",
        columns: Mapping[str, np.ndarray] | None = None,
    ):
        def on_device(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(values).to(device=device, dtype=dtype)

        starts = episodes.starts
        lengths = episodes.lengths
        rows = np.arange(episodes.n_steps)
        timestep = rows - np.repeat(starts, lengths)

        # The action of the row before, except at an episode's start.
        discrete = isinstance(episodes.action_space, gym.spaces.Discrete)
        action = on_device(episodes.actions, torch.int64 if discrete else torch.float32)
        previous_action = action.roll(1, 0)
        previous_action[on_device(starts, torch.int64)] = _no_action(episodes.action_space)

        flat = {
            "observation": on_device(episodes.observations, torch.float32 if episodes.parts is None else torch.uint8),
            "previous_action": previous_action,
            "return_to_go": on_device(episodes.returns_to_go, torch.float32),
            "timestep": on_device(timestep, torch.int64),
            "action": action,
        }
        for name, values in (columns or {}).items():
            flat[name] = on_device(values, torch.float32)
        self.context = context
        self.n_steps = episodes.n_steps
        self.draws = Draws(episodes)
        self.sequences = {key: _windows(values, context) for key, values in flat.items()}

        # For a window that starts at a row: its number of valid steps. Row n of the masks has n
        # valid steps.
        left = np.repeat(lengths, lengths) - timestep  # to the episode's end, this step included
        self.valid = on_device(np.minimum(left, context), torch.int64)
        self.masks = torch.ones(context + 1, context, dtype=torch.bool, device=device).tril(-1)

        # A row drawn from an episode that fits into the window stands for the episode's first row.
        fits = np.repeat(lengths <= context, lengths)
        self.first = on_device(np.where(fits, rows - timestep, rows), torch.int64)

    def sample(self, batch_size: int, seed: int, step: int) -> Batch:
        """Return batch `step` of the run `seed`."""
        return self.cut(self.draw(batch_size, seed, step))

    def draw(self, batch_size: int, seed: int, step: int) -> Batch:
        """Return what `cut` needs to know of a batch, on the device; the host draws it."""
        drawn = torch.from_numpy(self.draws.draw(batch_size, seed, step))
        if self.first.is_cuda:
            # CUDA reads pinned memory while the program goes on.
            drawn = drawn.pin_memory().to(self.first.device, non_blocking=True)
        return {"drawn": drawn}

    def cut(self, drawn: Batch) -> Batch:
        """Return the batch; this is work of the device alone."""
        return self.windows(self.first.index_select(0, drawn["drawn"]))

    def windows(self, first: torch.Tensor) -> Batch:
        """Return the windows that start at the rows `first` [B]."""
        batch = {key: sequences.index_select(0, first) for key, sequences in self.sequences.items()}
        batch["mask"] = self.masks.index_select(0, self.valid.index_select(0, first))
        return batch


def _windows(values: torch.Tensor, context: int) -> torch.Tensor:
    """View [N, …] as [N, context, …], where row t holds the rows t, t + 1, ….

    So a window is one copy.
    """
    padded = torch.cat([values, values[-1:].expand(context - 1, *values.shape[1:])])
    return padded.unfold(0, context, 1).movedim(-1, 1)


def _no_action(space: gym.Space) -> int:
    """Return what stands before an episode's first action: zeros, or one more class."""
    return int(space.n) if isinstance(space, gym.spaces.Discrete) else 0


class HostSampler:
    """A sampler that gathers windows from numpy arrays.

    Of each step only its return-to-go and the columns are held in RAM, 4 bytes each.
    While a batch is learned from, the kernel reads the pages of the next one. Which these are is
    known, because a batch is a function of (seed, step) alone. ``columns`` are as in SequenceSampler.
    """

    def __init__(
        self,
        episodes: Episodes,
        context: int,
        device: torch.device | str = "cpu",
        columns: Mapping[str, np.ndarray] | None = None,
    ):
        self.context = context
        self.columns = {name: np.asarray(values, np.float32) for name, values in (columns or {}).items()}
        self.n_steps = episodes.n_steps
        self.draws = Draws(episodes)
        self.device = torch.device(device)
        self.observations = Column(episodes.observations)
        self.actions = Column(episodes.actions)
        self.starts = episodes.starts
        self.lengths = episodes.lengths
        self.no_action = _no_action(episodes.action_space)

        self.return_to_go = np.empty(self.n_steps, np.float32)
        row = 0
        for values in episodes.returns_to_go_in_blocks():
            self.return_to_go[row : row + len(values)] = values
            row += len(values)

    def sample(self, batch_size: int, seed: int, step: int) -> Batch:
        """Return batch `step` of the run `seed`."""
        return self.cut(self.draw(batch_size, seed, step))

    def draw(self, batch_size: int, seed: int, step: int) -> Batch:
        """Return the whole batch, on the device: the host cuts it."""
        batch = self.windows(self._first(batch_size, seed, step))
        following = self._first(batch_size, seed, step + 1)
        for column in (self.observations, self.actions):
            column.fetch(following, self.context)
        if self.device.type == "cuda":
            # CUDA reads pinned memory while the program goes on.
            batch = {key: value.pin_memory() for key, value in batch.items()}
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def cut(self, drawn: Batch) -> Batch:
        return drawn

    def _first(self, batch_size: int, seed: int, step: int) -> np.ndarray:
        """Return the first rows of the windows of batch `step`, [batch_size]."""
        drawn = self.draws.draw(batch_size, seed, step)
        episode = np.searchsorted(self.starts, drawn, side="right") - 1
        return np.where(self.lengths[episode] <= self.context, self.starts[episode], drawn)

    def windows(self, first: np.ndarray) -> Batch:
        """Return the windows that start at the rows `first` [B], on the host.

        Past the end of the data the last row is repeated.
        """
        # Rows past an episode's end belong to the next one; the mask hides them.
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
        batch |= {name: values[rows] for name, values in self.columns.items()}
        return {key: torch.from_numpy(values) for key, values in batch.items()}


class Column:
    """An array whose rows are read at random, and can be fetched from the disk ahead of time."""

    def __init__(self, values: np.ndarray | Rows):
        self.rows: np.ndarray | None = None  # the chosen rows in their order; None: all
        if isinstance(values, Rows):
            self.rows = values.rows
            self.mapped = values.values
        else:
            self.mapped = values
        self.values = np.asarray(self.mapped)  # a memmap's own indexing is slower
        if isinstance(self.mapped, np.memmap) and hasattr(mmap, "MADV_RANDOM"):
            self._advise(mmap.MADV_RANDOM)  # do not read the pages around those that are wanted

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.rows is not None:
            rows = self.rows[rows]
        return self.values[rows]

    def fetch(self, first: np.ndarray, n: int) -> None:
        """Let the kernel read the `n` rows from each of `first` on, and the one before.

        The program does not wait for that. Otherwise it would wait for each page when it touches it,
        one after the other.
        """
        if not isinstance(self.mapped, np.memmap) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        row_bytes = self.values.strides[0]
        rows = first
        if self.rows is not None:
            rows = self.rows[first]

        # The mapping begins at the granule that holds the array's first byte. Advice begins at a page.
        offset = self.mapped.offset % mmap.ALLOCATIONGRANULARITY
        starts = np.maximum((rows - 1) * row_bytes + offset, 0)
        for start in (starts // mmap.PAGESIZE * mmap.PAGESIZE).tolist():
            self._advise(mmap.MADV_WILLNEED, start, (n + 1) * row_bytes + mmap.PAGESIZE)

    def _advise(self, *arguments: int) -> None:
        self.mapped._mmap.madvise(*arguments)  # type: ignore[attr-defined]


Sampler = SequenceSampler | HostSampler


def make_sampler(
    episodes: Episodes,
    context: int,
    device: torch.device | str,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Sampler:
    """Make the fastest sampler for which there is memory.

    A set that is mapped, or large compared to the GPU's free memory, stays where it is. So do images
    for a CPU: the tensors of SequenceSampler would be a second copy of them.
    """
    device = torch.device(device)
    if is_mapped(episodes.observations) or (episodes.parts is not None and device.type == "cpu"):
        return HostSampler(episodes, context, device, columns)
    if device.type == "cuda":
        size = episodes.observations.nbytes + episodes.actions.nbytes
        free, _ = torch.cuda.mem_get_info(device)
        if size > LARGE * free:
            return HostSampler(episodes, context, device, columns)
    return SequenceSampler(episodes, context, device, columns)
