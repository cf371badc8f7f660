"""Hold the observations with which a dataset's episodes begin against those of an environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.registered import first_observations

EPISODES = 1000  # of a dataset, at most
FEWEST = 10  # episodes that say how a dataset begins
FAR = 4  # times both deviations, between two means
SMALL = 1e-3  # of all that a column holds: differences that mean nothing
SHOWN = 3  # columns that are told of


def unlike_starts(episodes: Episodes, env_id: str | None, env_kwargs: dict[str, Any]) -> str | None:
    """Say in a line which columns begin otherwise in an environment; None where none does, or it cannot be told.

    Two signs, neither of which forbids anything. The means lie far apart, as of other units, of observations that were
    normalised or of another task. Or a column is always the same here and never that there, as where columns are in
    another order. Episodes that begin anywhere, as pieces of longer ones do, show neither.
    """
    if env_id is None or episodes.parts is not None or len(episodes) < FEWEST:
        return None
    theirs = first_observations(env_id, env_kwargs)
    ours = np.asarray(episodes.observations[episodes.starts[:EPISODES]], np.float64)
    if theirs is None or theirs.shape[1] != ours.shape[1] or not np.isfinite(ours).all():
        return None

    spread = np.maximum(np.ptp(ours, axis=0), np.ptp(theirs, axis=0))
    size = np.maximum(spread, np.abs(ours).max(axis=0))
    apart = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    far = apart > FAR * (ours.std(axis=0) + theirs.std(axis=0)) + SMALL * size
    fixed = np.ptp(ours, axis=0) <= 1e-6 * size
    other = (np.abs(theirs - ours[0]) > SMALL * size).mean(axis=0) >= 0.9
    columns = np.flatnonzero(far | (fixed & other)).tolist()
    if not columns:
        return None
    told = [f"column {j} is {_range(ours[:, j])} here and {_range(theirs[:, j])} there" for j in columns[:SHOWN]]
    more = f" (and {len(columns) - SHOWN} more)" if len(columns) > SHOWN else ""
    told_of = ", ".join(told) + more
    return f"episodes begin otherwise in {env_id}: {told_of}; are the columns its own, in its order and units?"


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low} to {high}"
