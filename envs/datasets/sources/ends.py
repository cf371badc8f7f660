"""Find out where the episodes of flat arrays end.

D4RL's fields say it by ``terminals`` (the task ended) and ``timeouts`` (the episode was cut off). Many
files lack the second, and in some the first means something else. Where two readings are possible,
``next_observations`` decide: a row whose next observation is not the next row is the last of its
episode. What was decided is told, and what nothing decides is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np

from unroll.envs.datasets.sources.reading import blocks_of, flags_of
from unroll.errors import DatasetError

# Within a walk, steps from one row to the next are of about the same size. From the last row of an
# episode to the first of the next one it is a jump, which is at least this many times as large.
JUMP = 3.0


class Ends(NamedTuple):
    """The last rows of the E episodes, and how each of them ended."""

    rows: np.ndarray  # [E]
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    remarks: list[str]
    marks_goal: bool  # whether terminals are no ends, so that a return counts each step at the goal


def find_ends(items: dict[str, h5py.Dataset], limit: int | None, env_id: str | None) -> Ends:
    """Find the ends of the episodes in D4RL's fields.

    Args:
        items: the fields.
        limit: the steps after which the environment cuts an episode off, if that is known.
        env_id: its name, for what is told.

    Raises:
        DatasetError: a flag is neither 0 nor 1, or nothing decides between two readings.
    """
    remarks: list[str] = []
    terminals = flags_of(items["terminals"])
    timeouts = flags_of(items["timeouts"]) if "timeouts" in items else None
    if timeouts is None or not timeouts.any():
        timeouts = _find_timeouts(items, terminals, timeouts, limit, env_id, remarks)
        marks_goal = False
    else:
        # Our own recordings say by their final observations how many episodes there are.
        marks_goal = "final_observations" not in items and _marks_goal(items, terminals, timeouts)
    if marks_goal:
        remarks.append(
            f"terminals are true in {int(terminals.sum()):,} rows, row after row in walks that timeouts end: taken for "
            "being at the goal, and no end; a return counts every step there"
        )
        terminals = np.zeros_like(terminals)

    n = len(terminals)
    rows = np.flatnonzero(terminals | timeouts)
    remarks += _doubts(items, terminals | timeouts, marks_goal)
    if len(rows) == 0 or rows[-1] != n - 1:
        # An unfinished tail is kept: neither terminated nor truncated.
        rows = np.append(rows, n - 1)
    return Ends(rows, terminals[rows], timeouts[rows] & ~terminals[rows], remarks, marks_goal)


def _doubts(items: dict[str, h5py.Dataset], ends: np.ndarray, marks_goal: bool) -> list[str]:
    """List what speaks against the flags that a file has, [N] bool."""
    found = []
    if "next_observations" in items and "timeouts" in items and not marks_goal:
        breaks = ~_goes_on(items["observations"], items["next_observations"]) & ~ends
        breaks[-1] = False  # nothing follows that could differ
        count = int(breaks.sum())
        if 0 < count <= 0.5 * (~ends).sum():  # else the two are on different scales
            found.append(
                f"next_observations is not the next row in {count:,} rows, first in row {int(np.argmax(breaks))}, and "
                "no flag ends an episode there"
            )

    # Flags of the first rows instead of the last: one episode of a single step, and an unfinished tail.
    rows = np.flatnonzero(ends)
    one_step = int((np.diff(rows, prepend=-1) == 1).sum())
    if ends[0] and not ends[-1] and one_step == 1 and len(rows) > 1:
        found.append("row 0 ends an episode and the last row ends none: do the flags mark where episodes begin?")
    return found


def _find_timeouts(
    items: dict[str, h5py.Dataset],
    terminals: np.ndarray,
    given: np.ndarray | None,
    limit: int | None,
    env_id: str | None,
    remarks: list[str],
) -> np.ndarray:
    """Mark where an episode was cut off, in a file whose timeouts are missing or all false."""
    what = "no timeouts" if given is None else "timeouts are all false"
    if "next_observations" in items:
        goes_on = _goes_on(items["observations"], items["next_observations"])
        cuts = ~goes_on & ~terminals
        cuts[-1] = False  # nothing follows that could differ
        count = int(cuts.sum())
        if count > 0.5 * (~terminals).sum():
            strange = (
                f"{what}, and next_observations is not the next row in {count:,} of {len(cuts):,} rows: the rows are "
                "not in the order of episodes, or the two are on different scales"
            )
            if given is None:
                raise DatasetError(strange)
            remarks.append(f"{strange}; episodes end at terminals alone")
        elif count:
            remarks.append(
                f"{what}: an episode is cut off in {count:,} rows whose next_observations is not the next row"
            )
            return cuts

    if given is not None:
        if not terminals.any() and not {"next_observations", "final_observations"} & items.keys():
            remarks.append(f"terminals and timeouts are all false: the {len(given):,} rows are taken for one episode")
        return given
    if limit is None:
        remarks.append("no timeouts and no known step limit: episodes are assumed to end at terminals alone")
        return np.zeros_like(terminals)

    # D4RL's oldest files. An episode that is longer than the limit is several, each cut off there.
    remarks.append(f"no timeouts: an episode is assumed to be cut off after {limit:,} steps, the limit of {env_id}")
    timeouts = np.zeros_like(terminals)
    start = 0
    for end in [*(np.flatnonzero(terminals) + 1).tolist(), len(terminals)]:
        timeouts[start + limit - 1 : end : limit] = True
        start = end
    return timeouts


def _marks_goal(items: dict[str, h5py.Dataset], terminals: np.ndarray, timeouts: np.ndarray) -> bool:
    """Say whether terminals mark that the goal is reached, in walks that go on until a timeout.

    That is the form of D4RL's antmaze: a walk has a terminal in nearly every row after its first.

    Raises:
        DatasetError: it looks like that, and nothing says whether the episodes go on.
    """
    ends = np.flatnonzero(terminals | timeouts)
    lengths = np.diff(ends, prepend=-1)
    if (lengths == 1).sum() <= 0.5 * len(lengths) or not _ends_in_terminals(terminals, timeouts):
        return False

    inner = terminals & ~timeouts
    inner[-1] = False
    if "next_observations" in items:
        goes_on = _goes_on(items["observations"], items["next_observations"])
        cut = timeouts.copy()
        cut[-1] = False
        if not cut.any() or goes_on[cut].mean() < 0.5:  # else it goes on everywhere, as where nothing is seen
            return bool(goes_on[inner].mean() > 0.5)
    else:
        walking, standing, between = _step_sizes(items["observations"], (~terminals & ~timeouts, inner, timeouts))
        if between > JUMP * max(walking, standing):
            return True
        if standing > JUMP * walking:
            return False
    raise DatasetError(
        f"terminals are true row after row, which makes {int((lengths == 1).sum()):,} of {len(lengths):,} episodes one "
        "step long, while timeouts end longer walks, and nothing says whether an episode goes on after a terminal"
    )


def _ends_in_terminals(terminals: np.ndarray, timeouts: np.ndarray) -> bool:
    """Say whether most walks with terminals begin without and have nearly nothing else after the first."""
    fitting = 0
    count = 0
    start = 0
    for end in (np.flatnonzero(timeouts) + 1).tolist():
        walk = terminals[start:end]
        start = end
        if walk.any():
            first = int(np.argmax(walk))
            count += 1
            fitting += bool(first > 0 and len(walk) - first > 1 and walk[first:].mean() > 0.8)
    return fitting > 0.5 * count


def _goes_on(observations: h5py.Dataset, following: h5py.Dataset) -> np.ndarray:
    """Mark the rows whose next observation is the next row, [N] bool; the last row goes on to nothing."""
    goes_on = np.zeros(len(observations), bool)
    for row, seen, then in _pairs(observations, following):
        with np.errstate(all="ignore"):
            same = np.isclose(seen, then, rtol=1e-5, atol=1e-6, equal_nan=True)
        goes_on[row : row + len(same)] = same.all(axis=1)
    return goes_on


def _step_sizes(observations: h5py.Dataset, kinds: tuple[np.ndarray, ...]) -> list[float]:
    """Return the median distance to the next row over the rows of each kind, in units of the columns' range."""
    low = np.inf
    high = -np.inf
    for rows in blocks_of(observations):
        part = _flat(observations[rows])
        low = np.minimum(low, part.min(0))
        high = np.maximum(high, part.max(0))
    scale = np.where(high > low, high - low, 1)

    distances = np.zeros(len(observations))
    for row, seen, then in _pairs(observations, observations):
        distances[row : row + len(seen)] = np.abs((seen - then) / scale).mean(1)
    found = []
    for kind in kinds:
        chosen = distances[:-1][kind[:-1]]
        found.append(float(np.median(chosen)) if len(chosen) else np.inf)
    return found


def _pairs(observations: h5py.Dataset, following: h5py.Dataset) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Iterate over blocks of (row, what the rows after these hold, what `following` holds in these)."""
    row = 0
    kept: np.ndarray | None = None  # the last row of the block before, which is still to be compared
    for rows in blocks_of(observations, following):
        seen = _flat(observations[rows])
        then = _flat(following[rows])
        if kept is not None:
            then = np.concatenate([kept, then])
            seen = np.concatenate([seen[:1], seen])
        kept = then[-1:]
        yield row, seen[1:], then[:-1]
        row += len(seen) - 1


def _flat(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.reshape(len(values), -1).astype(np.float32).astype(np.float64)
