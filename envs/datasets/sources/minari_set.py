"""Load episodes from a Minari dataset, which is downloaded when it is missing.

Minari stores T+1 observations per episode of T steps. Row t of ours is ``observations[t]``, and
``observations[T]`` is the episode's final observation. The environment is never recovered, which
would import what the metadata name: only its id is taken.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.cache import cached
from unroll.envs.datasets.conversion import Precision, as_float32, box_of, flat_box, flatten, leaf_spaces
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import beside_texts, is_text, pack, parts_of, row_bytes, texts_in_words
from unroll.envs.datasets.reference import reference_returns
from unroll.envs.datasets.registered import known_env
from unroll.envs.datasets.sources.checks import check_data, read_metadata
from unroll.envs.datasets.sources.minari_env import Said, settle, what_is_here
from unroll.envs.datasets.sources.reading import check_flags
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
            metadata = read_metadata(data / "metadata.json")
            episodes = cached(
                dataset_id,
                files,
                convert=lambda store: _convert(dataset_id, data, store),
                size=lambda: _size(dataset_id, data),
                variant=what_is_here(metadata),
            )
            # A recording need not show all choices of its environment.
            known = known_env(episodes.env_id, episodes.env_kwargs)
            return episodes.counted_as(known.action_space) if known else episodes
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
        form = "a Minari id reads namespace/name-v0, e.g. D4RL/door/human-v2, with namespaces of two letters or more"
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
    """Count the bytes of the arrays over all steps, as float32 or images as bytes, by the steps of the metadata."""
    _, dataset = _open(dataset_id, data)
    observed, _ = _observed(dataset)
    parts = parts_of(observed)
    row = row_bytes(parts) if parts else 4 * gym.spaces.flatdim(observed)
    return int(dataset.spec.total_steps) * (row + 4 * gym.spaces.flatdim(dataset.spec.action_space) + 4)  # the reward


def _observed(dataset: minari.MinariDataset) -> tuple[gym.Space, list[str]]:
    """Return the space of what a policy reads of an observation, and the names of the texts beside it.

    Raises:
        DatasetError: it is text alone, or has texts elsewhere than in a Dict.
    """
    space, texts = beside_texts(dataset.spec.observation_space)
    leaves = leaf_spaces(space)
    if all(map(is_text, leaves)):
        raise DatasetError("its observations are text alone, of which numbers must be made before they are recorded")
    if any(map(is_text, leaves)):
        raise DatasetError(
            "its observations have a text in an inner part; only those of the outermost Dict are left out"
        )
    return space, texts


class _Endings(NamedTuple):
    """The last steps of the episodes that one of Minari's is split into, and how each of them ended."""

    steps: np.ndarray  # [P]
    terminated: np.ndarray  # [P] bool
    truncated: np.ndarray  # [P] bool
    marked: bool  # whether there are flags in mid-episode that are no ends


def _convert(dataset_id: str, data: Path, store: Store) -> Episodes:
    """Convert the dataset, an episode at a time."""
    metadata, dataset = _open(dataset_id, data)
    action_space = dataset.spec.action_space
    if not isinstance(action_space, gym.spaces.Box | gym.spaces.Discrete):
        raise DatasetError(f"actions of {type(action_space).__name__}; only Box and Discrete can be learned")

    observed, texts = _observed(dataset)
    observation_space, said, remarks = settle(metadata, observed)
    if texts:
        remarks.append(texts_in_words(texts))
    remarks += _remarks_on_images(metadata, observation_space)
    parts = parts_of(observation_space)
    endings = []
    seen = Precision("observations")
    paid = Precision("rewards")
    steps = 0
    for episode in dataset.iterate_episodes():
        rows, ending = _episode(episode, observation_space, action_space)
        steps += len(rows["rewards"])
        # By this number it was decided whether the arrays fit into RAM.
        if steps > dataset.spec.total_steps:
            raise DatasetError(f"the metadata count {dataset.spec.total_steps} steps, the episodes hold more")
        if parts is None:
            seen.see(observation_space, episode.observations)
        paid.see(None, np.asarray(episode.rewards))
        store.append(**rows)
        endings.append(ending)
    if not endings:
        raise DatasetError("holds no episodes")

    remarks += [*_remarks_on(endings), *seen.remarks(), *paid.remarks()]
    arrays = store.arrays()
    reference, reference_name = _reference(metadata, dataset_id, said)
    space: gym.spaces.Box | gym.spaces.Discrete = action_space
    guessed = isinstance(action_space, gym.spaces.Box) and not action_space.is_bounded()
    if isinstance(action_space, gym.spaces.Box):
        space = box_of(arrays["actions"]) if guessed else flat_box(action_space)
    return Episodes(
        **arrays,
        lengths=np.concatenate([np.diff(ending.steps, prepend=-1) for ending in endings]),
        terminated=np.concatenate([ending.terminated for ending in endings]),
        truncated=np.concatenate([ending.truncated for ending in endings]),
        action_space=space,
        name=dataset_id,
        env_id=said.env_id,
        env_kwargs=said.env_kwargs,
        env_doubt=said.doubt,
        reference_returns=reference,
        reference_name=reference_name,
        remarks=tuple(remarks),
        parts=parts,
        guessed=guessed,
    )


def _episode(
    episode: Any, observation_space: gym.Space, action_space: gym.spaces.Box | gym.spaces.Discrete
) -> tuple[dict[str, np.ndarray], _Endings]:
    """Convert one of Minari's episodes to rows of each array, and the endings in it."""
    as_rows = flatten if parts_of(observation_space) is None else pack
    observations = as_rows(observation_space, episode.observations)
    steps = len(episode.rewards)
    _check_lengths(episode, len(observations), steps)

    if isinstance(action_space, gym.spaces.Discrete):
        actions = np.asarray(episode.actions).reshape(steps)
        last = action_space.start + action_space.n - 1
        if not np.array_equal(actions, np.clip(np.rint(actions), action_space.start, last)):
            raise DatasetError(f"episode {episode.id} has actions that are none of {action_space}")
        actions = actions.astype(np.int64) - int(action_space.start)
    else:
        actions = flatten(action_space, episode.actions)

    endings = _endings(episode, steps)
    rows = {
        "observations": observations[:-1],
        "final_observations": observations[endings.steps + 1],
        "actions": actions,
        "rewards": as_float32(episode.rewards.reshape(steps)),
    }
    return rows, endings


def _endings(episode: Any, steps: int) -> _Endings:
    """Find the ends in one of Minari's episodes: its last step, and flags before that.

    Flags in row after row, as while an agent stands at its goal, are no ends.
    """
    terminations = np.asarray(episode.terminations).reshape(steps)
    truncations = np.asarray(episode.truncations).reshape(steps)
    for name, flags in (("terminations", terminations), ("truncations", truncations)):
        check_flags(flags, f"episode {episode.id}: {name}", unit="step")
    terminations = terminations.astype(bool)
    truncations = truncations.astype(bool)

    ends = np.union1d(np.flatnonzero(terminations | truncations), steps - 1)
    marked = len(ends) > 1 and (np.diff(ends, prepend=-1) == 1).sum() > 0.5 * len(ends)
    if marked:
        # A truncation ends the episode then, whatever is marked beside it.
        return _Endings(ends[-1:], terminations[-1:] & ~truncations[-1:], truncations[-1:], True)
    return _Endings(ends, terminations[ends], truncations[ends] & ~terminations[ends], False)


def _remarks_on_images(metadata: dict[str, Any], space: gym.Space) -> list[str]:
    """Say that Minari keeps what it takes for an image as a JPEG, unless it was told not to."""
    from minari.dataset.minari_storage import is_image_space

    if not metadata.get("jpeg_encoding", True) or not any(map(is_image_space, leaf_spaces(space))):
        return []
    return ["its images are JPEGs: not quite what the environment shows to a policy that was trained on them"]


def _remarks_on(endings: list[_Endings]) -> list[str]:
    """Say how flags in mid-episode were read."""
    found = []
    split = [len(ending.steps) for ending in endings if len(ending.steps) > 1]
    if split:
        found.append(
            f"{len(split):,} episodes have terminations or truncations before their last step and are split there, "
            f"into {sum(split):,}"
        )
    marked = sum(ending.marked for ending in endings)
    if marked:
        found.append(
            f"{marked:,} episodes have terminations step after step before their last: taken for marks, as of being at "
            "the goal, and no ends"
        )
    return found


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


def _reference(metadata: dict[str, Any], dataset_id: str, said: Said) -> tuple[tuple[float, float] | None, str | None]:
    """Return the reference returns and where they come from.

    They are Minari's own scores where the metadata have some, else D4RL's, which are those of the
    environment as it is registered.
    """
    low = metadata.get("ref_min_score")
    high = metadata.get("ref_max_score")
    if isinstance(low, float | int) and isinstance(high, float | int) and -math.inf < low < high < math.inf:
        return (float(low), float(high)), f"Minari {dataset_id}"
    return reference_returns(None if said.env_kwargs or said.doubt else said.env_id)
