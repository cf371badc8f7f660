"""Find out where the episodes of flat arrays end.

D4RL's fields say it by ``terminals`` (the task ended) and ``timeouts`` (the episode was cut off), others
by Gymnasium's names. Many files lack the second, and in some the first means something else. Where two
readings are possible, ``next_observations`` decide: a row whose next observation is not the next row is
the last of its episode. What was decided is told, and what nothing decides is refused.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

from unroll.envs.datasets.registered import first_observations
from unroll.envs.datasets.sources.reading import blocks_of, flags_of
from unroll.errors import DatasetError

# Within a walk, steps from one row to the next are of about the same size. From the last row of an
# episode to the first of the next one it is a jump, which is at least this many times as large.
JUMP = 3.0
SOUGHT = 1000  # next observations, at most, that are looked for among all rows
CHANCE = 0.01  # of first observations that are by chance what came after the ends before them
SHIFTED = "next_observations is the next row over ends of episodes too, and says nothing of them"

# D4RL's names, and the others by which the same flags go.
ALSO = {"terminals": ("terminations", "terminated"), "timeouts": ("truncations", "truncated")}
# Parts of further names that arrays of such flags have. What these mean is not known.
HINTS = ("done", "timeout", "trunc", "terminat", "is_last")


class Ends(NamedTuple):
    """The last rows of the E episodes, and how each of them ended."""

    rows: np.ndarray  # [E]
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    remarks: list[str]
    marks_goal: bool  # whether terminals are no ends, so that a return counts each step at the goal
    shifted: bool  # whether next_observations is the next row over ends too


class Limit(NamedTuple):
    """The steps after which an environment cuts an episode off."""

    steps: int
    env_id: str
    env_kwargs: dict[str, Any]


def may_be_of_ends(name: str) -> bool:
    """Say whether an array of this name may hold flags of ends, by whatever convention."""
    return any(hint in name.lower() for hint in HINTS)


def find_ends(items: dict[str, h5py.Dataset], limit: Limit | None) -> Ends:
    """Find the ends of the episodes in D4RL's fields.

    Args:
        items: the fields, and beside them arrays of N numbers that may be flags of ends, by their names.
        limit: that of the environment, if it is known.

    Raises:
        DatasetError: a flag is neither 0 nor 1, or nothing decides between two readings.
    """
    remarks: list[str] = []
    terminals = _flags("terminals", items, remarks)
    assert terminals is not None
    timeouts = _flags("timeouts", items, remarks, besides=terminals)
    goes_on = None
    if "next_observations" in items:
        goes_on = _goes_on(items["observations"], items["next_observations"])
    if timeouts is None or not timeouts.any():
        timeouts = _find_timeouts(items, terminals, timeouts, goes_on, limit, remarks)
        remarks += _unread(items, terminals | timeouts)
        marks_goal = False
    else:
        # Our own recordings say by their final observations how many episodes there are.
        marks_goal = "final_observations" not in items and _marks_goal(items, terminals, timeouts, goes_on)
    if marks_goal:
        remarks.append(
            f"terminals are true in {int(terminals.sum()):,} rows, row after row in walks that timeouts end: taken for "
            "being at the goal, and no end; a return counts every step there"
        )
        terminals = np.zeros_like(terminals)
        goes_on = None  # it goes on after these

    n = len(terminals)
    rows = np.flatnonzero(terminals | timeouts)
    remarks += _doubts(items, terminals, timeouts, goes_on)
    if len(rows) == 0 or rows[-1] != n - 1:
        # An unfinished tail is kept: neither terminated nor truncated.
        rows = np.append(rows, n - 1)
    if SHIFTED not in remarks and goes_on is not None and _goes_on_over_resets(items["observations"], rows, goes_on):
        remarks.append(SHIFTED)
    shifted = SHIFTED in remarks
    return Ends(rows, terminals[rows], timeouts[rows] & ~terminals[rows], remarks, marks_goal, shifted)


def _flags(
    field: str, items: dict[str, h5py.Dataset], remarks: list[str], besides: np.ndarray | None = None
) -> np.ndarray | None:
    """Read the flags of `field`, [N] bool, under the first of its names that the file has; None where it has none.

    Another name than its own counts only where it holds flags. Of `timeouts`, which are given with `besides`, one that
    is true somewhere comes before one that never is. Under several names they may differ, but for rows that are flagged
    in `besides`.

    Raises:
        DatasetError: what has the field's own name, or the only one of its names, is no flag.
    """
    names = [name for name in (field, *ALSO[field]) if name in items]
    read = {}
    for name in names:
        try:
            read[name] = flags_of(items[name])
        except DatasetError:
            if name == field or (besides is None and name == names[-1] and not read):
                raise
    if not read:
        return None
    chosen = next(iter(read))
    if besides is not None and not read[chosen].any():
        chosen = next((name for name, flags in read.items() if flags.any()), chosen)
    flags = read.pop(chosen)
    if chosen != field:
        remarks.append(f"{f'{field} are all false' if field in read else f'no {field}'}: {chosen} is read as these")
        read.pop(field, None)
    for other, others in read.items():
        differ = others != flags
        if besides is not None:
            differ &= ~besides
        if differ.any():
            remarks.append(
                f"{chosen} and {other} differ in {int(differ.sum()):,} rows, first in row {int(np.argmax(differ))}: "
                f"{chosen} is read"
            )
    return flags


def _unread(items: dict[str, h5py.Dataset], ends: np.ndarray) -> list[str]:
    """Name the arrays of flags that are not read, and are true in rows that are no `ends`, [N] bool."""
    found = []
    fields = {*ALSO, *itertools.chain(*ALSO.values())}
    for name in sorted(filter(may_be_of_ends, items.keys() - fields)):
        with contextlib.suppress(DatasetError):  # no flags
            more = flags_of(items[name]) & ~ends
            more[-1] = False  # the file ends there
            if more.any():
                found.append(
                    f"no timeouts, and {name} is not read: it is true in {int(more.sum()):,} rows where no episode "
                    f"ends, first in row {int(np.argmax(more))}; if these are ends, the file must have it as timeouts"
                )
    return found


def _goes_on_over_resets(observations: h5py.Dataset, ends: np.ndarray, goes_on: np.ndarray) -> bool:
    """Say whether what follows each end, [E] rows, is the first observation of the next episode, and not by chance.

    Episodes may all begin alike, and end where they begin. A walk that is cut and not reset goes on in steps as before.
    """
    inner = ends[:-1]
    if not goes_on[inner].all():
        return False
    over_ends = np.zeros(len(goes_on), bool)
    over_ends[inner] = True
    within = ~over_ends
    within[-1] = False
    if over_ends.any() and within.any():
        across, walking = _step_sizes(observations, (over_ends, within))
        if across <= JUMP * walking:
            return False
    begins = np.zeros(len(goes_on), bool)
    begins[[0, *(inner + 1)]] = True
    first = _picked(observations, begins)
    alike = (_same(first[1:], first[:-1]).sum() + 1) / len(first)  # the share of those that are the one before
    return bool(alike ** len(inner) < CHANCE)


def _doubts(
    items: dict[str, h5py.Dataset], terminals: np.ndarray, timeouts: np.ndarray, goes_on: np.ndarray | None
) -> list[str]:
    """List what speaks against the flags that a file has, [N] bool.

    Raises:
        DatasetError: the rows are not in the order of episodes.
    """
    ends = terminals | timeouts
    found = []
    if goes_on is not None:
        breaks = ~goes_on & ~ends
        breaks[-1] = False  # nothing follows that could differ
        count = int(breaks.sum())
        if 0 < count <= 0.5 * (~ends).sum():
            found.append(
                f"next_observations is not the next row in {count:,} rows, first in row {int(np.argmax(breaks))}, and "
                "no flag ends an episode there"
            )
        elif count and timeouts.any():  # where there are none, it was said of these already
            found.append(f"{_disorder(items, breaks)}; episodes end where the flags say")
        found += _goals(items["observations"], terminals, timeouts, goes_on)

    # Flags of the first rows instead of the last: one episode of a single step, and an unfinished tail.
    rows = np.flatnonzero(ends)
    one_step = int((np.diff(rows, prepend=-1) == 1).sum())
    if ends[0] and not ends[-1] and one_step == 1 and len(rows) > 1:
        found.append("row 0 ends an episode and the last row ends none: do the flags mark where episodes begin?")
    return found


def _disorder(items: dict[str, h5py.Dataset], breaks: np.ndarray) -> str:
    """Say what it means that most next_observations are not the next row, those of `breaks`, [N] bool.

    Raises:
        DatasetError: they are other rows of the file, which is so in another order.
    """
    strange = f"next_observations is not the next row in {int(breaks.sum()):,} of {len(breaks):,} rows"
    marked = np.flatnonzero(breaks)
    some = np.zeros_like(breaks)
    some[marked[np.linspace(0, len(marked) - 1, SOUGHT).astype(np.int64)]] = True
    # One that repeats its own row tells nothing of what follows.
    pairs = zip(_picked(items["observations"], some), _picked(items["next_observations"], some), strict=True)
    sought = {then.tobytes(): 0 for seen, then in pairs if not np.array_equal(seen, then)}
    for rows in blocks_of(items["observations"]):
        for row in _flat(items["observations"][rows]):
            if row.tobytes() in sought:
                sought[row.tobytes()] += 1

    # Where observations are few, any of them is another row. A single one stands for what is not known, such as zeros.
    found = sum(times == 1 for times in sought.values())
    if len(sought) > 1 and found > 0.5 * len(sought):
        raise DatasetError(
            f"{strange}, but another one: the rows are not in the order of episodes, as those of several environments "
            "in turn, or it is not that of one step later; put each episode's rows one after the other, or, where they "
            "are so, leave next_observations out"
        )
    return f"{strange}: the rows are not in the order of episodes, or the two are on different scales"


def _goals(observations: h5py.Dataset, terminals: np.ndarray, timeouts: np.ndarray, goes_on: np.ndarray) -> list[str]:
    """Say after how many terminals a walk goes on, which may mark a goal and end nothing."""
    goals = terminals & ~timeouts & goes_on
    cut = timeouts[:-1]
    if not goals.any() or not cut.any() or goes_on[:-1][cut].mean() >= 0.5:
        return []  # it goes on over every end: nothing is seen

    # Where observations are few, that after an end may be that of the reset as well.
    begins = np.roll((terminals | timeouts) & ~goes_on, 1)
    begins[0] = True
    known = {row.tobytes() for row in _picked(observations, begins)}
    unlike = [row.tobytes() not in known for row in _picked(observations, np.roll(goals, 1))]
    rows = np.flatnonzero(goals)[unlike]
    if len(rows) == 0:
        return []
    return [
        f"next_observations goes on after {len(rows):,} of {int(terminals.sum()):,} terminals, first in row {rows[0]}: "
        "walks are cut there; if these mark a goal that ends nothing, and these rows are not those of a reset, the "
        "file must have them false"
    ]


def _find_timeouts(
    items: dict[str, h5py.Dataset],
    terminals: np.ndarray,
    given: np.ndarray | None,
    goes_on: np.ndarray | None,
    limit: Limit | None,
    remarks: list[str],
) -> np.ndarray:
    """Mark where an episode was cut off, in a file whose timeouts are missing or all false."""
    what = "no timeouts" if given is None else "timeouts are all false"
    if goes_on is not None:
        cuts = ~goes_on & ~terminals
        cuts[-1] = False  # nothing follows that could differ
        count = int(cuts.sum())
        if count > 0.5 * (~terminals).sum():
            strange = f"{what}, and {_disorder(items, cuts)}"
            if given is None:
                raise DatasetError(strange)
            remarks.append(f"{strange}; episodes end at terminals alone")
        elif count:
            remarks.append(
                f"{what}: an episode is cut off in {count:,} rows whose next_observations is not the next row"
            )
            return cuts
        elif given is None:
            if not _is_shifted(items["observations"], terminals, goes_on, limit):
                remarks.append(f"{what}: none is cut off, as next_observations is the next row wherever no terminal is")
                return cuts
            remarks.append(SHIFTED)

    if given is not None:
        if not terminals.any() and not {"next_observations", "final_observations"} & items.keys():
            remarks.append(f"terminals and timeouts are all false: the {len(given):,} rows are taken for one episode")
        return given
    if limit is None:
        remarks.append("no timeouts and no known step limit: episodes are assumed to end at terminals alone")
        return np.zeros_like(terminals)

    # D4RL's oldest files.
    remarks.append(
        f"no timeouts: an episode is assumed to be cut off after {limit.steps:,} steps, the limit of {limit.env_id}"
    )
    return _cut_at(terminals, limit.steps)


def _cut_at(terminals: np.ndarray, steps: int) -> np.ndarray:
    """Mark where episodes are cut off, [N] bool: one that is longer than the limit is several."""
    timeouts = np.zeros_like(terminals)
    start = 0
    for end in [*(np.flatnonzero(terminals) + 1).tolist(), len(terminals)]:
        timeouts[start + steps - 1 : end : steps] = True
        start = end
    return timeouts


def _is_shifted(observations: h5py.Dataset, terminals: np.ndarray, goes_on: np.ndarray, limit: Limit | None) -> bool:
    """Say whether next_observations, which breaks nowhere, was made of the next rows, over resets too.

    After a terminal it is the next row then, or the rows after the limit's cuts are such as the environment
    shows after a reset.
    """
    inner = terminals[:-1]
    if inner.any() and goes_on[:-1][inner].mean() > 0.5:
        return True
    if limit is None:
        return False
    begins = np.roll(_cut_at(terminals, limit.steps), 1)
    begins[0] = False
    rows = _picked(observations, begins)
    shown = first_observations(limit.env_id, limit.env_kwargs)
    if shown is None or len(rows) == 0 or shown.shape[1] != rows.shape[1]:
        return False
    room = np.ptp(shown, axis=0) + 1e-5 * np.abs(shown).max(axis=0)  # as few resets do not show all
    within = (rows >= shown.min(axis=0) - room) & (rows <= shown.max(axis=0) + room)
    return bool(within.all(axis=1).mean() > 0.5)


def _marks_goal(
    items: dict[str, h5py.Dataset], terminals: np.ndarray, timeouts: np.ndarray, goes_on: np.ndarray | None
) -> bool:
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
    if goes_on is not None:
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
        goes_on[row : row + len(seen)] = _same(seen, then)
    return goes_on


def _same(seen: np.ndarray, then: np.ndarray) -> np.ndarray:
    """Mark the rows of two arrays that are the same but for rounding, [N] bool."""
    with np.errstate(all="ignore"):
        return np.isclose(seen, then, rtol=1e-5, atol=1e-6, equal_nan=True).all(axis=1)


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


def _picked(observations: h5py.Dataset, marked: np.ndarray) -> np.ndarray:
    """Return the rows of observations that are marked, [N] bool."""
    return np.concatenate([_flat(observations[rows])[marked[rows]] for rows in blocks_of(observations)])


def _flat(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.reshape(len(values), -1).astype(np.float32).astype(np.float64) + 0.0  # -0 is 0
