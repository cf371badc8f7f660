"""Episodes from an HDF5 file with D4RL's fields: flat arrays over N steps, episodes one after the other.

Read are ``observations``, ``actions``, ``rewards``, ``terminals``, and where they exist ``timeouts``,
``next_observations`` (for the observation after an episode's end) and our own ``final_observations`` [E, …]. Everything
else, such as D4RL's ``infos/…`` and ``metadata/…``, is left alone. Format: Fu et al. 2020, d4rl's ``offline_env``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from unroll.envs.datasets.cache import cached
from unroll.envs.datasets.conversion import MAX_DISCRETE, as_float32, box_of, flatten
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.datasets.registered import env_spaces, is_env_id, step_limit
from unroll.envs.datasets.sources.checks import check_sizes
from unroll.envs.datasets.statistics import blocks
from unroll.envs.datasets.store import Store
from unroll.errors import DatasetError, one_line

log = logging.getLogger(__name__)

REQUIRED = ("observations", "actions", "rewards", "terminals")
ROWS = ("observations", "actions", "rewards")
OPTIONAL = ("timeouts", "next_observations", "final_observations")


def load_hdf5(path: str | Path, env_id: str | None = None) -> Episodes:
    """The episodes of the file at ``path``; ``env_id`` overrides the file's attribute ``env``.

    Raises DatasetError, one line that names the path, for whatever is not such a file. Values are not judged here.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DatasetError(f"{path}: no such file")
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; a dataset is an .hdf5 file, and a Minari set is named minari:ID")
    try:
        return cached(
            path.stem, [path], lambda store: _read(path, env_id, store), lambda: _size(path), 1, variant=env_id or ""
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes h5py raise anything from OSError to SystemError
        raise DatasetError(f"{path}: {_diagnosis(path)} ({one_line(error)})") from None


def _size(path: Path) -> int:
    """Bytes of the arrays over all steps, as float32."""
    with h5py.File(path, "r") as file:
        return sum(4 * int(item.size or 0) for name, item in _find(file).items() if name in ROWS)


def _read(path: Path, env_id: str | None, store: Store) -> Episodes:
    with h5py.File(path, "r") as file:
        env_id = env_id or _text(file.attrs.get("env")) or None
        if env_id and not is_env_id(env_id):
            raise DatasetError(f"its attribute env is {env_id[:100]!r}, not the id of an environment")
        items = _find(file)
        n = len(items["observations"])
        terminals = _flags(items["terminals"])
        timeouts = _flags(items["timeouts"]) if "timeouts" in items else _limits(terminals, env_id, path)
        ends = np.flatnonzero(terminals | timeouts)
        if len(ends) == 0 or ends[-1] != n - 1:
            ends = np.append(ends, n - 1)  # an unfinished tail, kept: neither terminated nor truncated
        casts = {"observations": _observations, "actions": _actions, "rewards": _rewards}
        convert = {name: cast(items[name], env_id) for name, cast in casts.items()}
        for rows in _blocks(*(items[name] for name in ROWS)):
            store.append(**{name: convert[name](items[name][rows]) for name in ROWS})
        final = _final(items, ends, env_id)
    arrays = store.arrays()
    reference, reference_name = reference_returns(env_id)
    return Episodes(
        **arrays,
        lengths=np.diff(ends, prepend=-1).astype(np.int64),
        terminated=terminals[ends],
        truncated=timeouts[ends] & ~terminals[ends],
        final_observations=final,
        action_space=_action_space(arrays["actions"], env_id),
        name=path.stem,
        env_id=env_id,
        reference_returns=reference,
        reference_name=reference_name,
    )


def _find(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The wanted datasets, wherever in the file they are; links are not followed, so a cycle cannot trap the search."""
    found: dict[str, list[h5py.Dataset]] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        *groups, field = name.split("/")
        wanted = field in REQUIRED + OPTIONAL and not {"infos", "metadata"} & set(groups)
        if wanted and isinstance(item, h5py.Dataset):
            found.setdefault(field, []).append(item)

    file.visititems(visit)
    for field, items in found.items():
        if len(items) > 1:
            raise DatasetError(f"holds {items[0].name} and {items[1].name}: {field} must be one array over all steps")
    fields = {field: items[0] for field, items in found.items()}
    _check(fields)
    return fields


def _check(items: dict[str, h5py.Dataset]) -> None:
    """Raise DatasetError unless the datasets fit each other, and their declared sizes and types are harmless."""
    check_sizes(items.values())
    for name, item in items.items():
        if item.dtype.kind not in "fiub":
            raise DatasetError(f"{name} holds {item.dtype}, not numbers")
        if item.ndim == 0:
            raise DatasetError(f"{name} is a single number, not an array over steps")
    missing = [name for name in REQUIRED if name not in items]
    if missing:
        raise DatasetError(f"lacks {', '.join(missing)}; D4RL's fields are {', '.join(REQUIRED)}")
    n = len(items["observations"])
    if n == 0:
        raise DatasetError("holds no steps")
    for name, item in items.items():
        if name != "final_observations" and len(item) != n:
            raise DatasetError(f"{name} has {len(item)} rows, observations {n}")
        if name in ("rewards", "terminals", "timeouts") and item.size != n:
            raise DatasetError(f"{name} is {item.shape}, not ({n},) or ({n}, 1)")


def _blocks(*items: h5py.Dataset) -> Iterator[slice]:
    """Rows to read together: whole chunks of the item with the longest, for a chunk is unpacked for each read of it."""
    n = len(items[0])
    return blocks(
        n, sum(item.nbytes for item in items) // n, max(item.chunks[0] if item.chunks else 1 for item in items)
    )


def _parts(item: h5py.Dataset) -> Iterator[np.ndarray]:
    return (item[rows] for rows in _blocks(item))


def _flags(item: h5py.Dataset) -> np.ndarray:
    return np.concatenate([part.reshape(-1).astype(bool) for part in _parts(item)])


def _limits(terminals: np.ndarray, env_id: str | None, path: Path) -> np.ndarray:
    """Timeouts for a file without any, as D4RL's oldest: where an episode reaches the environment's step limit."""
    timeouts, limit = np.zeros(len(terminals), bool), step_limit(env_id)
    if limit is None:
        log.warning("%s: no timeouts and no known step limit, so episodes end at terminals alone", path)
        return timeouts
    ends = [*(np.flatnonzero(terminals) + 1).tolist(), len(terminals)]
    for start, end in zip([0, *ends], ends, strict=False):
        timeouts[start + limit - 1 : end : limit] = True
    return timeouts


Cast = Callable[[np.ndarray], np.ndarray]


def _rewards(item: h5py.Dataset, env_id: str | None) -> Cast:
    return lambda values: as_float32(values.reshape(-1))


def _actions(item: h5py.Dataset, env_id: str | None) -> Cast:
    """What makes actions of a part of them: [N, width] float32, or [N] int64 where they are whole numbers."""
    column = item.size == len(item)
    if item.dtype.kind == "f":
        # some tools store action 1 as 1.0
        if not (_choices(env_id) and column and all(np.array_equal(part, np.rint(part)) for part in _parts(item))):
            return lambda values: as_float32(values.reshape(len(values), -1))
    elif not column:
        raise DatasetError(f"actions are whole numbers of shape {item.shape}: discrete actions need one column")
    return lambda values: values.reshape(-1).astype(np.int64)


def _action_space(actions: np.ndarray, env_id: str | None) -> gym.spaces.Box | gym.spaces.Discrete:
    """The environment's where it fits them, else the smallest usual one."""
    if actions.ndim == 1:
        low, high, expected = int(actions.min()), int(actions.max()), _choices(env_id)
        if max(high + 1, expected or 1) > MAX_DISCRETE or low < 0:
            raise DatasetError(f"discrete actions from {low} to {high} are outside of 0 to {MAX_DISCRETE}")
        return gym.spaces.Discrete(expected or high + 1)
    spaces = env_spaces(env_id)
    box = spaces[1] if spaces else None
    if isinstance(box, gym.spaces.Box) and box.shape == actions.shape[1:] and box.is_bounded():
        return gym.spaces.Box(box.low, box.high, dtype=np.float32)
    return box_of(actions)


def _choices(env_id: str | None) -> int | None:
    """How many actions the environment has, where they are discrete and counted from 0."""
    spaces = env_spaces(env_id)
    space = spaces[1] if spaces else None
    return int(space.n) if isinstance(space, gym.spaces.Discrete) and space.start == 0 else None


def _observations(item: h5py.Dataset, env_id: str | None) -> Cast:
    """What makes observations of a part of them: [N, width] float32; numbers become one-hot where they do so in the
    environment, whose states are discrete."""
    if item.size == len(item) and item.dtype.kind in "iu":
        spaces = env_spaces(env_id)
        width = spaces[0] if spaces else None
        if width and width > 1 and all(part.min() >= 0 and part.max() < width for part in _parts(item)):
            return functools.partial(flatten, gym.spaces.Discrete(width))
    return lambda values: as_float32(values.reshape(len(values), -1))


def _final(items: dict[str, h5py.Dataset], ends: np.ndarray, env_id: str | None) -> np.ndarray | None:
    """The observation after each episode's last step, [E, width], where the file has it."""
    if "final_observations" in items:
        item = items["final_observations"]
        if len(item) != len(ends):
            raise DatasetError(f"final_observations has {len(item)} rows for {len(ends)} episodes")
        return _observations(item, env_id)(item[()])
    if "next_observations" in items:
        item, row, parts = items["next_observations"], 0, []
        for part in _parts(item):
            parts.append(part[ends[(row <= ends) & (ends < row + len(part))] - row])
            row += len(part)
        return _observations(item, env_id)(np.concatenate(parts))
    return None


def _diagnosis(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "the file is empty"
    if b"<html" in head.lower() or b"<!doctype" in head.lower():
        return "this is a web page, not HDF5; download the file again"
    if not head.startswith(b"\x89HDF"):
        return "this is not an HDF5 file"
    return "the HDF5 file is damaged or cut short"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
