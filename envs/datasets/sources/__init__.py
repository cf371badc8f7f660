"""Load episodes from ``minari:ID``, ``d4rl:ID``, ``embedded:NAME`` or the path of an .hdf5 file.

A new source is one file with a loader ``(name, download) -> Episodes`` and one line in ``SOURCES``.
``unroll inspect SOURCE`` prints what a dataset holds and what is wrong with it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from unroll.envs.datasets.doctor import first_of, problems, remarks
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.joining import different_places, join, odds_of, what_each_brings
from unroll.envs.datasets.reference import d4rl_table
from unroll.envs.datasets.sources.d4rl_set import load_d4rl
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.envs.datasets.sources.minari_set import load_minari
from unroll.errors import DatasetError

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "data"
FORMS = "minari:ID, d4rl:ID, embedded:NAME or the path of an .hdf5 file"


def load_embedded(name: str, download: bool = False) -> Episodes:
    """Load a dataset that comes with the code."""
    names = sorted(file.stem for file in EMBEDDED.glob("*.hdf5"))
    if name not in names:
        raise DatasetError(f"embedded:{name}: unknown; there is {', '.join(names) or 'none'}")
    return load_hdf5(EMBEDDED / f"{name}.hdf5")


def load_file(path: str, download: bool = False) -> Episodes:
    """Load a file of the user's. There is nowhere to download it from."""
    if not Path(path).expanduser().exists():
        hint = f"a source is {FORMS}"
        near = difflib.get_close_matches(path, list(d4rl_table()), n=1)
        if near:  # the id of a D4RL set without its prefix
            hint = f"did you mean d4rl:{near[0]}?"
        raise DatasetError(f"{path}: no such file; {hint}")
    return load_hdf5(path)


SOURCES: dict[str, Callable[[str, bool], Episodes]] = {
    "minari": load_minari,
    "d4rl": load_d4rl,
    "embedded": load_embedded,
    "file": load_file,
}


def check_different(sources: Sequence[str]) -> None:
    """Raise DatasetError where two sources are one dataset, by its name or by its file."""
    files = {str(Path(source).expanduser().resolve()) for source in sources}
    if len(files) < len(sources):
        raise DatasetError(f"{' '.join(sources)}: a dataset is there twice; weights say how often one is drawn")


def read_episodes(source: str, download: bool = False) -> Episodes:
    """Load the episodes of `source` without judging their values.

    `download` fetches a D4RL file that is missing.

    Raises:
        DatasetError: there is no such dataset, or it cannot be read.
    """
    prefix, colon, name = source.partition(":")
    if not colon or Path(source).exists():
        prefix = "file"
        name = source
    if prefix not in SOURCES:
        raise DatasetError(f"{source}: unknown kind of source {prefix!r}; a source is {FORMS}")
    if not name:
        raise DatasetError(f"{source!r} names no dataset; a source is {FORMS}")
    return SOURCES[prefix](name, download)


def load_episodes(
    source: str | Path | Sequence[str | Path],
    download: bool = False,
    weights: Sequence[float] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Episodes:
    """Load the episodes of `source`, fit to be trained on. What there is to say of them is logged.

    Args:
        source: a dataset by its name or path, or several of one space, which are joined (see joining.py).
        download: fetch a D4RL file that is missing.
        weights: how often each of several datasets is drawn, relative to the others. None: by their steps.
        tell: takes a line for each of several datasets, which says what it brings, and one where
            their environments differ.

    Raises:
        DatasetError: there is no such dataset, it cannot be read, its values are unusable, or
            several are of different spaces.
    """
    sources = [str(source)] if isinstance(source, str | Path) else [str(one) for one in source]
    if not sources:
        raise DatasetError(f"an empty list names no dataset; a source is {FORMS}")
    check_different(sources)
    if weights is not None:  # of a single one, too
        odds_of(weights, len(sources))
    several = [_load_one(one, download) for one in sources]
    if len(several) == 1:
        return several[0]
    joined = join(several, sources, weights)
    for line in what_each_brings(several, sources, weights):
        tell(line)
    places = different_places(several, sources)
    if places:
        tell(places)
    return joined


def _load_one(source: str, download: bool) -> Episodes:
    episodes = read_episodes(source, download)
    found = problems(episodes)
    if found:
        raise DatasetError(f"{source}: {first_of(found)} (see unroll inspect {source})")
    for remark in remarks(episodes):
        log.warning("%s: %s", source, remark)
    return episodes
