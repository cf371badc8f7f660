"""Episodes, the form that every dataset takes, whatever file it came from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.conversion import can_be_scaled, flat_box
from unroll.envs.datasets.images import Parts, as_numbers, numbers
from unroll.envs.datasets.statistics import Statistics, find_outside, find_statistics, read
from unroll.errors import DatasetError

STEPS = 1 << 21  # steps whose rewards are summed together


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Recorded episodes as flat arrays: N steps of E episodes, one after the other.

    Row ``t`` holds the observation on which the action was chosen, that action, and the reward that
    it brought. Only the last step of an episode can be ``terminated`` or ``truncated``; if it is
    neither, the recording stopped.

    A discrete action is a choice, 0 to n - 1. The environment's own action is the choice plus the
    ``start`` of its space.

    Observations with images are rows of bytes, and ``parts`` says what is where in them (see
    images.py). All other observations are rows of float32 numbers.

    An agent keeps a copy of arrays in RAM. Of episodes with images it keeps none on a CPU, as that
    would be too large: these must not be changed while it learns.

    Arrays that are large compared to RAM are memory-mapped (see cache.py). Code that needs
    all of their values reads them in blocks (see statistics.py).
    """

    observations: np.ndarray  # [N, observation_dim] float32, or uint8 where there are parts
    actions: np.ndarray  # [N, action_dim] float32 (Box) or [N] int64 (Discrete): choices, see below
    rewards: np.ndarray  # [N] float32
    lengths: np.ndarray  # [E] int64
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    action_space: gym.spaces.Box | gym.spaces.Discrete
    name: str
    final_observations: np.ndarray | None = None  # [E, observation_dim]: after the last step, NaN where unknown
    env_id: str | None = None
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # its arguments, plain values
    env_doubt: str | None = None  # what it has beyond these, which cannot be taken from a file
    reference_returns: tuple[float, float] | None = None  # mean return of a random and of an expert policy
    reference_name: str | None = None  # where these two numbers come from
    known_statistics: Statistics | None = None  # of these values, where they were computed before
    remarks: tuple[str, ...] = ()  # how the loader read what can be read in several ways, a line each
    parts: Parts | None = None  # of observations with images
    guessed: bool = False  # whether the action space was made of the actions, where nothing says what it is
    origin: np.ndarray | None = None  # [E]: from which of several joined datasets each episode is
    odds: tuple[float, ...] | None = None  # with which each of these is drawn; None: by its steps

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        return len(self.rewards)

    @property
    def observation_dim(self) -> int:
        """The width of a row of observations, in numbers, or in bytes where there are images."""
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
        """Iterate over the returns-to-go, those of some whole episodes at a time."""
        # The sum runs on over all episodes, so that the result does not depend on the size of the
        # blocks.
        total = 0.0
        for rewards, episodes, returns in self._sums():
            sums = np.cumsum(np.append(total, rewards))[1:]
            before = sums - rewards
            total = sums[-1]

            # What is left at step t: the sum at the episode's end minus the sum before t.
            lengths = self.lengths[episodes]
            ends = before[np.cumsum(lengths) - lengths] + returns
            yield np.repeat(ends, lengths) - before

    def _sums(self) -> Iterator[tuple[np.ndarray, slice, np.ndarray]]:
        """Iterate over (rewards in float64, their episodes, their returns), STEPS at a time."""
        ends = np.cumsum(self.lengths)
        first = 0
        while first < len(self):
            start = ends[first] - self.lengths[first]
            stop = max(first + 1, int(np.searchsorted(ends, start + STEPS, side="right")))
            episodes = slice(first, stop)
            rewards = np.asarray(self.rewards[start : ends[stop - 1]], np.float64)
            returns = np.add.reduceat(rewards, ends[episodes] - self.lengths[episodes] - start)
            yield rewards, episodes, returns
            first = stop

    def statistics(self) -> Statistics:
        """Return the statistics that were kept with the episodes, or else compute them.

        The arrays must fit each other.
        """
        if self.known_statistics is not None:
            return self.known_statistics
        arrays = (self.observations, self.actions, self.rewards, self.final_observations)
        if self.parts is None:
            return find_statistics(*arrays, self.action_space)
        return find_statistics(*arrays, self.action_space, functools.partial(numbers, self.parts))

    def select(self, episodes: np.ndarray) -> Episodes:
        """Return the given episodes in the given order. No value of a mapped array is read."""
        lengths = self.lengths[episodes]

        # Rows of the chosen steps: where each one's episode starts, plus its place in the episode.
        starts = np.repeat(self.starts[episodes], lengths)
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = starts + place

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
            known_statistics=None,
            origin=None if self.origin is None else self.origin[episodes],
        )

    def counted_as(self, space: gym.Space) -> Episodes:
        """Return these episodes with their choices counted as those of another Discrete space.

        A Box takes the bounds of another one, if its own were guessed, and whole numbers in one column are
        choices then, as guessed choices are numbers in a Box. The environment's actions stay what they are.
        Where one of them is not in that space, or it is of another kind, the episodes are returned as they are.
        """
        own = self.action_space
        if self.guessed and isinstance(own, gym.spaces.Box) and isinstance(space, gym.spaces.Discrete):
            return self._chosen_from(space)
        if self.guessed and isinstance(own, gym.spaces.Discrete) and isinstance(space, gym.spaces.Box):
            return self._as_numbers_in(flat_box(space))
        if isinstance(own, gym.spaces.Box) and isinstance(space, gym.spaces.Box):
            return self._bounded_by(flat_box(space))
        if not isinstance(own, gym.spaces.Discrete) or not isinstance(space, gym.spaces.Discrete):
            return self
        if own == space or not len(self.actions):
            return self
        shift = int(own.start) - int(space.start)
        low = min(int(part.min()) for part in read(self.actions)) + shift
        high = max(int(part.max()) for part in read(self.actions)) + shift
        if low < 0 or high >= space.n:
            return self
        actions = np.asarray(self.actions) + shift if shift else self.actions
        return dataclasses.replace(self, actions=actions, action_space=space, guessed=False)

    def _chosen_from(self, space: gym.spaces.Discrete) -> Episodes:
        end = space.start + space.n
        if self.action_space.shape != (1,) or not all(
            bool(((part == np.rint(part)) & (part >= space.start) & (part < end)).all()) for part in read(self.actions)
        ):
            return self
        choices = np.asarray(self.actions)[:, 0].astype(np.int64) - int(space.start)
        return dataclasses.replace(self._as_known(space), actions=choices)

    def _as_numbers_in(self, box: gym.spaces.Box) -> Episodes:
        numbers = np.asarray(self.actions, np.float32)[:, None]  # guessed choices are counted from 0
        fits = box.shape == (1,) and box.is_bounded() and can_be_scaled(box)
        if not fits or find_outside(numbers, box)[0]:
            return self
        return dataclasses.replace(self._as_known(box), actions=numbers)

    def _bounded_by(self, box: gym.spaces.Box) -> Episodes:
        fits = box.shape == self.action_space.shape and box.is_bounded() and can_be_scaled(box)
        if not (fits and self.guessed) or box == self.action_space or find_outside(self.actions, box)[0]:
            return self
        return self._as_known(box)

    def _as_known(self, space: gym.spaces.Box | gym.spaces.Discrete) -> Episodes:
        """Return these episodes with a space that holds all of their actions, in place of a guessed one."""
        known = self.known_statistics
        if known is not None:
            known = dataclasses.replace(known, outside=(0, 0))
        return dataclasses.replace(self, action_space=space, known_statistics=known, guessed=False)

    def without_images(self) -> Episodes:
        """Return these episodes with rows of float32 numbers, in which a pixel is a number like any other."""
        if self.parts is None:
            return self
        final = self.final_observations
        return dataclasses.replace(
            self,
            observations=as_numbers(self.parts, np.asarray(self.observations)),
            final_observations=None if final is None else as_numbers(self.parts, final),
            known_statistics=None,
            parts=None,
        )

    def top(self, fraction: float) -> Episodes:
        """Return the episodes with the best returns that make up `fraction` of the steps.

        This is the selection of "10 % BC" (Chen et al. 2021), but for ties: who has the return of the last one that
        is chosen is chosen too, as nothing but the order in the file tells them apart. Where several datasets are drawn
        with given odds, it is made in each of them: otherwise a worse one might not be drawn at all.

        Raises:
            DatasetError: the fraction is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise DatasetError(f"top fraction must be in (0, 1], not {fraction}")
        groups = [np.arange(len(self))]
        if self.origin is not None and self.odds is not None:
            groups = [np.flatnonzero(self.origin == i) for i in range(len(self.odds))]

        returns = self.returns
        chosen = []
        for group in groups:
            best = group[np.argsort(-returns[group], kind="stable")]
            steps = np.cumsum(self.lengths[best])
            # 0.07 · 20,000 is 1400.0000000000002, for which no further episode is taken.
            wanted = round(fraction * int(steps[-1]), 6)
            last = best[int(np.searchsorted(steps, wanted))]
            chosen.append(best[returns[best] >= returns[last]])
        episodes = np.concatenate(chosen)
        return self if len(episodes) >= len(self) else self.select(episodes)


class Rows:
    """A view of some rows of a memory-mapped array, in any order.

    Values are gathered only where it is indexed.
    """

    def __init__(self, values: np.ndarray, rows: np.ndarray):
        self.values = values
        self.rows = rows
        self.shape = (len(rows), *values.shape[1:])
        self.dtype = values.dtype
        self.ndim = values.ndim

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
    """Say whether an array's values lie in a file."""
    return isinstance(values, np.memmap | Rows)


def _take(values: np.ndarray, rows: np.ndarray) -> Any:
    if isinstance(values, Rows):
        return Rows(values.values, values.rows[rows])
    if is_mapped(values):
        return Rows(values, rows)
    return values[rows]
