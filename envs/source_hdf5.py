"""Episodes from an HDF5 file with D4RL's fields: flat arrays over N steps, episodes one after the other.

Read are ``observations``, ``actions``, ``rewards``, ``terminals``, and where they exist ``timeouts``,
``next_observations`` (for the observation after an episode's end) and our own ``final_observations`` [E, …]. Everything
else, such as D4RL's ``infos/…`` and ``metadata/…``, is left alone. Format: Fu et al. 2020, d4rl's ``offline_env``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from envs.cache import cached
from envs.datasets import DatasetError, Episodes, one_line
from envs.hdf5_checks import check_sizes
from envs.scores import reference_returns
from envs.spaces import MAX_DISCRETE, as_float32, box_of, env_spaces, flatten, is_env_id, step_limit

log = logging.getLogger(__name__)

REQUIRED = ("observations", "actions", "rewards", "terminals")
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
        return cached(path.stem, [path], lambda: _read(path, env_id), min_seconds=1, variant=env_id or "")
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes h5py raise anything from OSError to SystemError
        raise DatasetError(f"{path}: {_diagnosis(path)} ({one_line(error)})") from None


def _read(path: Path, env_id: str | None) -> Episodes:
    with h5py.File(path, "r") as file:
        env_id = env_id or _text(file.attrs.get("env")) or None
        if env_id and not is_env_id(env_id):
            raise DatasetError(f"its attribute env is {env_id[:100]!r}, not the id of an environment")
        items = _find(file)
        check_sizes(items.values())
        fields = {name: _array(item) for name, item in items.items()}
    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        raise DatasetError(f"lacks {', '.join(missing)}; D4RL's fields are {', '.join(REQUIRED)}")
    n = len(fields["observations"])
    if n == 0:
        raise DatasetError("holds no steps")
    for name, values in fields.items():
        if name != "final_observations" and len(values) != n:
            raise DatasetError(f"{name} has {len(values)} rows, observations {n}")
    for name in {"rewards", "terminals", "timeouts"} & fields.keys():
        if fields[name].size != n:
            raise DatasetError(f"{name} is {fields[name].shape}, not ({n},) or ({n}, 1)")
        fields[name] = fields[name].reshape(n)
    terminals = fields["terminals"].astype(bool)
    timeouts = fields["timeouts"].astype(bool) if "timeouts" in fields else _limits(terminals, env_id, path)
    ends = np.flatnonzero(terminals | timeouts)
    if len(ends) == 0 or ends[-1] != n - 1:
        ends = np.append(ends, n - 1)  # an unfinished tail, kept: neither terminated nor truncated
    actions, action_space = _actions(fields["actions"], env_id)
    reference, reference_name = reference_returns(env_id)
    return Episodes(
        observations=_observations(fields["observations"], env_id),
        actions=actions,
        rewards=as_float32(fields["rewards"]),
        lengths=np.diff(ends, prepend=-1).astype(np.int64),
        terminated=terminals[ends],
        truncated=timeouts[ends] & ~terminals[ends],
        final_observations=_final(fields, ends, env_id),
        action_space=action_space,
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
    return {field: items[0] for field, items in found.items()}


def _array(item: h5py.Dataset) -> np.ndarray:
    """The values of a dataset of numbers."""
    name = (item.name or "").strip("/")
    if item.dtype.kind not in "fiub":
        raise DatasetError(f"{name} holds {item.dtype}, not numbers")
    if item.ndim == 0:
        raise DatasetError(f"{name} is a single number, not an array over steps")
    return item[()]


def _limits(terminals: np.ndarray, env_id: str | None, path: Path) -> np.ndarray:
    """Timeouts for a file without any, as D4RL's oldest: where an episode reaches the environment's step limit."""
    limit = step_limit(env_id)
    if limit is None:
        log.warning("%s: no timeouts and no known step limit, so episodes end at terminals alone", path)
        return np.zeros(len(terminals), bool)
    rows = np.arange(len(terminals))
    begins = np.append(True, terminals[:-1])
    start = np.maximum.accumulate(np.where(begins, rows, 0))
    return (rows - start + 1) % limit == 0


def _actions(values: np.ndarray, env_id: str | None) -> tuple[np.ndarray, gym.spaces.Box | gym.spaces.Discrete]:
    """Actions and their space: the environment's where it fits them, else the smallest usual one."""
    spaces = env_spaces(env_id)
    expected = spaces[1] if spaces else None
    discrete = isinstance(expected, gym.spaces.Discrete) and expected.start == 0
    column = int(np.prod(values.shape[1:])) == 1
    if values.dtype.kind == "f" and discrete and column and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)  # some tools store action 1 as 1.0
    if values.dtype.kind == "f":
        values = as_float32(values.reshape(len(values), -1))
        if isinstance(expected, gym.spaces.Box) and expected.shape == values.shape[1:] and expected.is_bounded():
            return values, gym.spaces.Box(expected.low, expected.high, dtype=np.float32)
        return values, box_of(values)
    if not column:
        raise DatasetError(f"actions are whole numbers of shape {values.shape}: discrete actions need one column")
    values = values.reshape(-1).astype(np.int64)
    n = max(int(values.max()) + 1, int(expected.n) if discrete else 1)  # type: ignore[union-attr]
    if n > MAX_DISCRETE or values.min() < 0:
        raise DatasetError(f"discrete actions from {values.min()} to {values.max()} are outside of 0 to {MAX_DISCRETE}")
    return values, gym.spaces.Discrete(int(expected.n) if discrete else n)  # type: ignore[union-attr]


def _observations(values: np.ndarray, env_id: str | None) -> np.ndarray:
    """[N, width] float32; numbers become one-hot where they do so in the environment, whose states are discrete."""
    if int(np.prod(values.shape[1:])) == 1 and values.dtype.kind in "iu":
        spaces = env_spaces(env_id)
        width = spaces[0] if spaces else None
        if width is not None and width > 1 and values.min() >= 0 and values.max() < width:
            return flatten(gym.spaces.Discrete(width), values)
    return as_float32(values.reshape(len(values), -1))


def _final(fields: dict[str, np.ndarray], ends: np.ndarray, env_id: str | None) -> np.ndarray | None:
    """The observation after each episode's last step, [E, width], where the file has it."""
    if "final_observations" in fields:
        final = fields["final_observations"]
        if len(final) != len(ends):
            raise DatasetError(f"final_observations has {len(final)} rows for {len(ends)} episodes")
        return _observations(final, env_id)
    if "next_observations" in fields:
        return _observations(fields["next_observations"][ends], env_id)
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
