"""Load episodes from an HDF5 file with D4RL's fields.

These are flat arrays over N steps, episodes one after the other.
The loader reads ``observations``, ``actions``, ``rewards``, ``terminals``, and where they exist
``timeouts``, ``next_observations`` (for the observation after an episode's end) and our own
``final_observations`` [E, …]. Flags may have Gymnasium's names (see ends.py). Observations
[N, height, width, channels] of bytes are images, and the attribute ``parts`` describes rows of bytes
that hold some (see images.py). Everything else is left alone, such as D4RL's ``infos/…`` and
``metadata/…``. Format: Fu et al. 2020, d4rl's ``offline_env``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import h5py
import numpy as np

from unroll.envs.datasets.cache import cached
from unroll.envs.datasets.conversion import MAX_DISCRETE, Precision, as_float32, box_of, flat_box, flatten
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import Parts, check_parts, parts_in_words, parts_of, row_bytes
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.datasets.registered import Known, is_env_id, known_env, not_plain, step_limit
from unroll.envs.datasets.sources.checks import check_sizes
from unroll.envs.datasets.sources.ends import ALSO, Limit, find_ends, may_be_of_ends
from unroll.envs.datasets.sources.reading import blocks_of as _blocks
from unroll.envs.datasets.sources.reading import parts_of as _parts
from unroll.envs.datasets.statistics import read
from unroll.envs.datasets.store import Store
from unroll.errors import DatasetError, one_line

REQUIRED = ("observations", "actions", "rewards", "terminals")
ROWS = ("observations", "actions", "rewards")
OPTIONAL = ("timeouts", "next_observations", "final_observations")

Cast = Callable[[np.ndarray], np.ndarray]


def load_hdf5(path: str | Path, env_id: str | None = None, scored_as: str | None = None) -> Episodes:
    """Load the episodes of the file at `path`. Their values are not judged here.

    Args:
        path: the file.
        env_id: the environment, instead of the one in the file's attribute ``env``.
        scored_as: the id in the table of reference returns, instead of the environment's.

    Raises:
        DatasetError: this is not such a file. The message is one line that names the path.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DatasetError(f"{path}: no such file")
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; a dataset is an .hdf5 file, and a Minari set is named minari:ID")
    try:
        return cached(
            path.stem,
            [path],
            convert=lambda store: _read(path, env_id, scored_as, store),
            size=lambda: _size(path, env_id),
            min_seconds=1,
            variant=f"{_variant(path, env_id)} {scored_as}",
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except Exception as error:  # of a damaged file h5py makes anything from OSError to SystemError
        raise DatasetError(f"{path}: {_diagnosis(path, error)} ({one_line(error)})") from None


class _Env(NamedTuple):
    """The environment of a file: what is said of it, and what is known of it here."""

    env_id: str | None
    env_kwargs: dict[str, Any]
    doubt: str | None  # what it has beyond that
    known: Known | None
    limit: int | None  # steps of an episode

    @property
    def discrete(self) -> gym.spaces.Discrete | None:
        """The environment's actions, if they are discrete ones."""
        space = self.known.action_space if self.known else None
        return space if isinstance(space, gym.spaces.Discrete) else None

    @property
    def hint(self) -> str:
        """What would say how actions are meant that are refused, where their environment is not known."""
        if self.known is not None:
            return ""
        if self.env_id:
            return f"; {self.env_id}, which would say what they are, is not registered here"
        return "; if they are another environment's, the file's attribute env must name it"


def _env_of(file: h5py.File, env_id: str | None) -> _Env:
    """Find the environment `env_id`, or the one that the file's attributes name."""
    if env_id:
        return _Env(env_id, {}, None, known_env(env_id, {}), step_limit(env_id, {}))
    env_id = _text(file.attrs.get("env")) or None
    if env_id and not is_env_id(env_id):
        raise DatasetError(f"its attribute env is {env_id[:100]!r}, not the id of an environment")

    # What `unroll record` writes of the environment beside its id.
    try:
        env_kwargs = json.loads(_text(file.attrs.get("env_kwargs")) or "{}")
    except ValueError as error:
        raise DatasetError(f"its attribute env_kwargs is not JSON ({one_line(error)})") from None
    doubt = _text(file.attrs.get("env_doubt")) or None
    strange = not_plain(env_kwargs)
    if strange:
        doubt = f"argument {', argument '.join(strange)}"
        env_kwargs = {}
    return _Env(env_id, env_kwargs, doubt, known_env(env_id, env_kwargs), step_limit(env_id, env_kwargs))


def _variant(path: Path, env_id: str | None) -> str:
    """Say what decides how the file is read: its environment, and whether that can be made here."""
    with h5py.File(path, "r") as file:
        return str(_env_of(file, env_id))


def _size(path: Path, env_id: str | None) -> int:
    """Count the bytes of the arrays over all steps, as float32, or images as bytes."""
    with h5py.File(path, "r") as file:
        items = _find(file)
        parts = _parts_in(file, items["observations"], _env_of(file, env_id))
        sizes = {name: 4 * int(items[name].size or 0) for name in ROWS}
        if parts is not None:
            sizes["observations"] //= 4
        return sum(sizes.values())


def _read(path: Path, env_id: str | None, scored_as: str | None, store: Store) -> Episodes:
    """Convert the file, a block of rows at a time."""
    with h5py.File(path, "r") as file:
        env = _env_of(file, env_id)
        items = _find(file)
        parts = _parts_in(file, items["observations"], env)
        limit = Limit(env.limit, env.env_id, env.env_kwargs) if env.env_id and env.limit is not None else None
        ends = find_ends(items, limit)

        # The rows of all steps.
        casts = {
            "observations": _observation_cast(items["observations"], env, parts),
            "actions": _action_cast(items["actions"], env),
            "rewards": _reward_cast,
        }
        watched = {}
        if parts is None:  # bytes are kept as they are
            watched["observations"] = Precision("observations")
        watched["rewards"] = Precision("rewards")
        for rows in _blocks(*(items[name] for name in ROWS)):
            block = {name: items[name][rows] for name in ROWS}
            for name, precision in watched.items():
                precision.see(None, block[name])
            store.append(**{name: cast(block[name]) for name, cast in casts.items()})
        if ends.shifted:  # what came after the ends is not in the file
            items.pop("next_observations")
        final = _final(items, ends.rows, casts["observations"])

    arrays = store.arrays()
    remarks = ends.remarks
    for precision in watched.values():
        remarks += precision.remarks()
    action_space, guessed = _action_space(arrays["actions"], env, remarks)
    # The table's returns are those of the environment as it is registered, where the goal is an end.
    standard = not (env.env_kwargs or env.doubt or ends.marks_goal)
    reference, reference_name = reference_returns((scored_as or env.env_id) if standard else None)
    return Episodes(
        **arrays,
        lengths=np.diff(ends.rows, prepend=-1).astype(np.int64),
        terminated=ends.terminated,
        truncated=ends.truncated,
        final_observations=final,
        action_space=action_space,
        name=path.stem,
        env_id=env.env_id,
        env_kwargs=env.env_kwargs,
        env_doubt=env.doubt,
        reference_returns=reference,
        reference_name=reference_name,
        remarks=tuple(remarks),
        parts=parts,
        guessed=guessed,
    )


def _parts_in(file: h5py.File, item: h5py.Dataset, env: _Env) -> Parts | None:
    """Return the parts of observations that hold images; None for rows of numbers.

    Raises:
        DatasetError: the attribute ``parts`` does not describe the observations.
    """
    text = _text(file.attrs.get("parts"))
    if text:
        try:
            parts = check_parts(json.loads(text))
        except ValueError as error:
            raise DatasetError(f"its attribute parts is none of observations with images ({one_line(error)})") from None
        if item.dtype != np.uint8 or item.shape[1:] != (row_bytes(parts),):
            raise DatasetError(
                f"observations is {item.dtype} {item.shape}, its attribute parts says {parts_in_words(parts)}, "
                f"{row_bytes(parts):,} bytes a row"
            )
        return parts
    if item.dtype != np.uint8 or item.ndim != 4 or 0 in item.shape:
        return None
    if env.known is not None and parts_of(env.known.observation_space) is None:
        return None  # an array that the environment does not take for an image
    try:
        return check_parts({"": item.shape[1:]})
    except ValueError as error:
        raise DatasetError(str(error)) from None


def _find(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Find the wanted datasets, wherever in the file they are, and others that may be flags of ends.

    Links are not followed, so a cycle cannot trap the search.
    """
    found: dict[str, list[h5py.Dataset]] = {}
    flags: dict[str, list[h5py.Dataset]] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        # D4RL's "infos/…" and "metadata/…" hold fields of the same names.
        *groups, field = name.split("/")
        if not isinstance(item, h5py.Dataset) or {"infos", "metadata"} & set(groups):
            return
        if field in REQUIRED + OPTIONAL:
            found.setdefault(field, []).append(item)
        elif may_be_of_ends(field):
            flags.setdefault(field, []).append(item)

    file.visititems(visit)
    for field, items in found.items():
        if len(items) > 1:
            raise DatasetError(f"holds {items[0].name} and {items[1].name}: {field} must be one array over all steps")
    fields = {field: items[0] for field, items in found.items()}
    if "observations" in fields:
        rows = fields["observations"].shape[:1]
        for field, items in flags.items():
            of_steps = items[0].shape in (rows, (*rows, 1)) and items[0].dtype.kind in "fiub"
            if of_steps and len(items) == 1:
                fields[field] = items[0]
    _check(fields)
    return fields


def _check(items: dict[str, h5py.Dataset]) -> None:
    """Raise DatasetError unless the datasets fit each other and declare harmless sizes."""
    check_sizes(items.values())
    for name, item in items.items():
        if item.dtype.kind not in "fiub":
            raise DatasetError(f"{name} holds {item.dtype}, not numbers")
        if item.ndim == 0:
            raise DatasetError(f"{name} is a single number, not an array over steps")

    missing = [name for name in REQUIRED if not items.keys() & {name, *ALSO.get(name, ())}]
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


def _reward_cast(values: np.ndarray) -> np.ndarray:
    return as_float32(values.reshape(-1))


def _rows_cast(values: np.ndarray) -> np.ndarray:
    return as_float32(values.reshape(len(values), -1))


def _choice_cast(start: int, values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).astype(np.int64) - start


def _bytes_cast(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.uint8:
        raise DatasetError(f"observations are bytes, and those after the ends of episodes {values.dtype}")
    return values.reshape(len(values), -1)


def _one_hot_cast(space: gym.Space, values: np.ndarray) -> np.ndarray:
    """Make numbers of states one-hot. Those after the ends of episodes that are not known, NaN, stay NaN."""
    rows = np.full((len(values), gym.spaces.flatdim(space)), np.nan, np.float32)
    known = ~np.isnan(values.reshape(len(values), -1)).all(axis=1)
    with np.errstate(invalid="ignore"):  # infinities are none either
        states = values[known].astype(np.int64)
    if (states != values[known]).any():
        raise DatasetError("observations are numbers of states, and some after the ends of episodes are none")
    try:
        rows[known] = flatten(space, states)
    except ValueError as error:
        raise DatasetError(one_line(error)) from None
    return rows


def _observation_cast(item: h5py.Dataset, env: _Env, parts: Parts | None) -> Cast:
    """Choose how a block becomes observations [N, width]: float32, or uint8 where they have parts.

    Whole numbers become one-hot if the environment's states are discrete, so that it shows them as
    one-hot as well.
    """
    if parts is not None:
        return _bytes_cast
    # One whole number per step, which some tools store as 1.0, may be the number of a state, or an observation of
    # width 1.
    if env.known is None:
        return _rows_cast
    space: Any = env.known.observation_space
    high: Any = None  # the first number that is none of its own
    if isinstance(space, gym.spaces.Discrete) and item.size == len(item):
        high = space.start + space.n
    elif isinstance(space, gym.spaces.MultiDiscrete) and item.shape[1:] == space.shape:
        high = space.start + space.nvec
    if high is not None and all(
        ((space.start <= part) & (part < high) & (part == np.rint(part))).all() for part in _parts(item)
    ):
        return functools.partial(_one_hot_cast, space)
    return _rows_cast


def _action_cast(item: h5py.Dataset, env: _Env) -> Cast:
    """Choose how a block becomes actions: [N, width] float32, or [N] int64 choices.

    A file holds the actions that the environment was given.
    """
    one_column = item.size == len(item)
    box = env.known.action_space if env.known else None
    if isinstance(box, gym.spaces.Box) and item.size == len(item) * box.low.size:
        return _rows_cast  # whole numbers too, of a file that holds -1, 0 and 1 as they are
    choice_cast = functools.partial(_choice_cast, int(env.discrete.start) if env.discrete else 0)
    if item.dtype.kind != "f":
        if not one_column:
            raise DatasetError(
                f"actions are whole numbers of shape {item.shape}: discrete actions need one column{env.hint}"
            )
        return choice_cast

    # Some tools store action 1 as 1.0. This is believed only where the environment's actions are
    # discrete.
    if env.discrete and one_column and all(np.array_equal(part, np.rint(part)) for part in _parts(item)):
        return choice_cast
    return _rows_cast


def _action_space(
    actions: np.ndarray, env: _Env, remarks: list[str]
) -> tuple[gym.spaces.Box | gym.spaces.Discrete, bool]:
    """Choose the environment's action space if it fits the actions, else the smallest usual one, which is guessed.

    What was assumed for that is added to `remarks`.
    """
    if env.discrete and actions.ndim == 1:
        if env.discrete.n > MAX_DISCRETE:
            raise DatasetError(f"{env.env_id} has {env.discrete.n} discrete actions, more than {MAX_DISCRETE}")
        return env.discrete, False
    if actions.ndim == 1:
        low = int(actions.min())
        high = int(actions.max())
        if high + 1 > MAX_DISCRETE or low < 0:
            raise DatasetError(f"discrete actions from {low} to {high} are outside of 0 to {MAX_DISCRETE}{env.hint}")
        if low > 0:
            remarks.append(
                f"discrete actions from {low} to {high}, and no environment that says from where they are counted: "
                f"taken as {high + 1} choices, counted from 0"
            )
        return gym.spaces.Discrete(high + 1), True

    box = env.known.action_space if env.known else None
    if isinstance(box, gym.spaces.Box) and box.low.size == actions.shape[1] and box.is_bounded():
        return flat_box(box), False
    if env.known is None and actions.shape[1] == 1 and _look_chosen(actions):
        remarks.append(
            "actions are floats, all of them whole numbers from 0, and no environment says whether they are choices: "
            "taken as continuous until one does; whole numbers in the file are choices"
        )
    return box_of(actions), True


def _look_chosen(actions: np.ndarray) -> bool:
    """Say whether continuous actions could be discrete ones: whole numbers from 0, of which there are several."""
    if not all(bool(((part == np.rint(part)) & (part >= 0) & (part < MAX_DISCRETE)).all()) for part in read(actions)):
        return False
    return any(bool((part != actions[0]).any()) for part in read(actions))


def _final(items: dict[str, h5py.Dataset], ends: np.ndarray, cast: Cast) -> np.ndarray | None:
    """Read the observation after each episode's last step, [E, width], where the file has it.

    It is converted as the others are: its type may be another, as where NaN stands for what is not known.
    """
    if "final_observations" in items:
        item = items["final_observations"]
        if len(item) != len(ends):
            raise DatasetError(f"final_observations has {len(item)} rows for {len(ends)} episodes")
        return cast(item[()])

    if "next_observations" in items:
        # Pick the rows of the last steps out of the blocks.
        item = items["next_observations"]
        row = 0
        picked = []
        for part in _parts(item):
            within = ends[(row <= ends) & (ends < row + len(part))] - row
            picked.append(part[within])
            row += len(part)
        return cast(np.concatenate(picked))

    return None


def _diagnosis(path: Path, error: Exception) -> str:
    """Say why a file cannot be read as HDF5."""
    if isinstance(error, BlockingIOError):  # HDF5 locks what it writes
        return "another process has it open for writing; read it when that is done"
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
    """Return the text of an attribute, also of an array of one; nothing where it holds something else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""
