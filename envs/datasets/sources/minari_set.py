"""Load episodes from a Minari dataset, which is downloaded when it is missing.

Minari stores T+1 observations per episode of T steps. Row t of ours is ``observations[t]``, and
``observations[T]`` is the episode's final observation. The environment is never recovered, which
would import what the metadata name: only its id is taken.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.cache import cached
from unroll.envs.datasets.conversion import as_float32, flatten
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.order import arrange, declared, flat_width, has_choice, in_words, layout, same_parts
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.datasets.registered import known_env
from unroll.envs.datasets.sources.checks import check_data, read_metadata
from unroll.envs.datasets.store import Store
from unroll.errors import DatasetError, one_line

if TYPE_CHECKING:
    import minari

HOST = "huggingface.co/farama-minari"


def load_minari(dataset_id: str, download: bool = False) -> Episodes:
    """Load the dataset `dataset_id` from ``$MINARI_DATASETS_PATH`` or ``~/.minari/datasets``.

    A missing one is fetched whatever `download` says, as Minari's users expect of an id.

    Raises:
        DatasetError: an unknown or malformed id, a failed download, or damaged files.
    """
    _check_id(dataset_id)
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    data = root / dataset_id / "data"
    if not (data / "metadata.json").exists():
        if data.parent.exists() and any(data.parent.rglob("*")):
            raise DatasetError(f"minari:{dataset_id}: {data / 'metadata.json'} is missing")
        _download(dataset_id, data)

    files = sorted(file for file in data.rglob("*") if file.is_file())
    try:
        # Minari and Gymnasium warn about spaces. What matters of that is an error here.
        with warnings.catch_warnings(action="ignore"):
            env_id = _env_id(read_metadata(data / "metadata.json"))
            return cached(
                dataset_id,
                files,
                convert=lambda store: _convert(dataset_id, data, store),
                size=lambda: _size(dataset_id, data),
                variant=str(known_env(env_id, {})),
            )
    except DatasetError as error:
        raise DatasetError(f"minari:{dataset_id}: {error}") from None
    except Exception as error:  # damaged files make h5py, json and Minari raise anything
        names = ", ".join(sorted(file.name for file in data.iterdir()))
        raise DatasetError(f"minari:{dataset_id}: cannot read {data} ({names}): {one_line(error)}") from None


def _check_id(dataset_id: str) -> None:
    """Check the form of an id. Minari would leave a folder behind for one that it then refuses."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):  # TypeError: no version
        form = "a Minari id reads namespace/name-v0, e.g. D4RL/door/human-v2"
        raise DatasetError(f"minari:{dataset_id}: {form}") from None


def _download(dataset_id: str, data: Path) -> None:
    import minari

    by_hand = f"or put metadata.json and main_data.hdf5 into {data}"
    try:
        with warnings.catch_warnings():
            # Minari warns that a higher version exists. The user named the one that is wanted.
            warnings.simplefilter("ignore")
            # Minari would take an empty folder, left by an earlier attempt, for the dataset.
            if data.parent.exists():
                data.parent.rmdir()
            minari.download_dataset(dataset_id)
    except ImportError as error:
        raise DatasetError(
            f"minari:{dataset_id} is not at {data}, and to download it from {HOST} Minari needs huggingface_hub: "
            f"pip install 'unroll-rl[hub]', {by_hand} ({one_line(error)})"
        ) from None
    except Exception as error:  # no network, an unknown id …: each library raises its own
        raise DatasetError(f"minari:{dataset_id}: download from {HOST} failed ({one_line(error)}); {by_hand}") from None


def _open(dataset_id: str, data: Path) -> tuple[dict[str, Any], minari.MinariDataset]:
    """Check the files of a dataset and open it with Minari's reader. Return its metadata too."""
    import minari

    metadata = read_metadata(data / "metadata.json")
    for file in data.rglob("*.hdf5"):
        check_data(file, metadata)
    return metadata, minari.load_dataset(dataset_id)


def _size(dataset_id: str, data: Path) -> int:
    """Count the bytes of the arrays over all steps, as float32, by the steps of the metadata."""
    _, dataset = _open(dataset_id, data)
    width = gym.spaces.flatdim(dataset.spec.observation_space) + gym.spaces.flatdim(dataset.spec.action_space)
    return 4 * int(dataset.spec.total_steps) * (width + 1)  # 1: the reward


class _Ending(NamedTuple):
    """The length of an episode, and how it ended."""

    steps: int
    terminated: bool
    truncated: bool


def _convert(dataset_id: str, data: Path, store: Store) -> Episodes:
    """Convert the dataset, an episode at a time."""
    metadata, dataset = _open(dataset_id, data)
    action_space = dataset.spec.action_space
    if not isinstance(action_space, gym.spaces.Box | gym.spaces.Discrete):
        raise DatasetError(f"actions of {type(action_space).__name__}; only Box and Discrete can be learned")
    if isinstance(action_space, gym.spaces.Discrete) and action_space.start != 0:
        raise DatasetError(f"{action_space}: discrete actions must be counted from 0")

    env_id = _env_id(metadata)
    written = json.loads(metadata["observation_space"])
    observation_space, env_id, remarks = _arranged(dataset.spec.observation_space, written, env_id)

    endings = []
    steps = 0
    for episode in dataset.iterate_episodes():
        rows, ending = _episode(episode, observation_space, action_space)
        steps += ending.steps
        # By this number it was decided whether the arrays fit into RAM.
        if steps > dataset.spec.total_steps:
            raise DatasetError(f"the metadata count {dataset.spec.total_steps} steps, the episodes hold more")
        store.append(**rows)
        endings.append(ending)
    if not endings:
        raise DatasetError("holds no episodes")

    arrays = store.arrays()
    reference, reference_name = _reference(metadata, dataset_id, env_id)
    return Episodes(
        **arrays,
        lengths=np.array([ending.steps for ending in endings]),
        terminated=np.array([ending.terminated for ending in endings]),
        truncated=np.array([ending.truncated for ending in endings]),
        action_space=_without_shape(action_space),
        name=dataset_id,
        env_id=env_id,
        reference_returns=reference,
        reference_name=reference_name,
        remarks=tuple(remarks),
    )


def _env_id(metadata: dict[str, Any]) -> str | None:
    return str(json.loads(metadata.get("env_spec") or "{}").get("id") or "") or None


def _arranged(space: gym.Space, written: dict[str, Any], env_id: str | None) -> tuple[gym.Space, str | None, list[str]]:
    """Put the parts of the observation in the environment's order.

    Returns:
        The space in that order, the environment's id or None where it shows something else, and
        what is to be said of it.
    """
    order = declared(space, written)
    known = known_env(env_id, {})
    remarks = []
    if known is not None:
        own = layout(known.observation_space)
        if same_parts(order, own):
            return arrange(space, own), env_id, []

        # One of the two may be flat already, and then it has no parts.
        width = flat_width(order)
        if known.width != width:
            remarks = [f"{width} observations per step, {env_id} has {known.width}"]
        elif isinstance(order, dict) and isinstance(own, dict):
            remarks = [f"observations of {in_words(order)}, {env_id} has {in_words(own)}"]
        if remarks:
            # The data were recorded with other options than the registered environment has.
            return arrange(space, order), None, [f"{remarks[0]}: it is not taken for the set's environment"]

    if has_choice(order):
        why = "no environment is named"
        if env_id:
            why = f"{env_id} shows no parts" if known else f"{env_id} is not here to be asked"
        remarks = [f"the parts of an observation are in the order of its metadata, {in_words(order)}: {why}"]
    return arrange(space, order), env_id, remarks


def _episode(
    episode: Any, observation_space: gym.Space, action_space: gym.spaces.Box | gym.spaces.Discrete
) -> tuple[dict[str, np.ndarray], _Ending]:
    """Convert one episode to rows of each array, and its ending."""
    observations = flatten(observation_space, episode.observations)
    steps = len(episode.rewards)
    _check_lengths(episode, len(observations), steps)

    if isinstance(action_space, gym.spaces.Discrete):
        actions = np.asarray(episode.actions).reshape(steps)
        if not np.array_equal(actions, np.clip(np.rint(actions), 0, action_space.n)):
            raise DatasetError(f"episode {episode.id} has actions that are none of {action_space}")
        actions = actions.astype(np.int64)
    else:
        actions = flatten(action_space, episode.actions)

    rows = {
        "observations": observations[:-1],
        "final_observations": observations[-1:],
        "actions": actions,
        "rewards": as_float32(episode.rewards.reshape(steps)),
    }
    terminated = bool(episode.terminations[-1])
    truncated = bool(episode.truncations[-1]) and not terminated
    return rows, _Ending(steps, terminated, truncated)


def _check_lengths(episode: Any, n_observations: int, steps: int) -> None:
    """Raise DatasetError unless there is one observation more than steps, and one of all else."""
    if steps == 0:
        raise DatasetError(f"episode {episode.id} has no steps")
    if n_observations != steps + 1:
        old = ", as old versions of some sets have; take a newer version" if n_observations == steps else ""
        raise DatasetError(f"episode {episode.id} has {n_observations} observations for {steps} steps{old}")
    for name in ("actions", "rewards", "terminations", "truncations"):
        values = np.asarray(getattr(episode, name))
        if len(values) != steps:
            raise DatasetError(f"episode {episode.id} has {len(values)} {name} for {steps} steps")
        if values.dtype.kind not in "fiub" or (name != "actions" and values.size != steps):
            raise DatasetError(f"episode {episode.id} has {name} of {values.dtype} {values.shape} for {steps} steps")


def _reference(
    metadata: dict[str, Any], dataset_id: str, env_id: str | None
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the reference returns and where they come from.

    They are Minari's own scores where the metadata have some, else D4RL's.
    """
    low = metadata.get("ref_min_score")
    high = metadata.get("ref_max_score")
    if isinstance(low, float | int) and isinstance(high, float | int) and -math.inf < low < high < math.inf:
        return (float(low), float(high)), f"Minari {dataset_id}"
    return reference_returns(env_id)


def _without_shape(space: gym.spaces.Box | gym.spaces.Discrete) -> gym.spaces.Box | gym.spaces.Discrete:
    """Return the space of the actions as flat rows."""
    if isinstance(space, gym.spaces.Discrete):
        return gym.spaces.Discrete(int(space.n))
    return gym.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=np.float32)
