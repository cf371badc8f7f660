"""Record episodes and write them to a file.

A wrapper around an environment remembers every step, whoever acts: an agent that learns, or one
that plays. The recording becomes ``Episodes``, and these an HDF5 file with D4RL's fields or a
Minari dataset.
"""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import h5py
import numpy as np

from unroll.envs.datasets.conversion import flat_box
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import numbers, pack_one, parts_of, unpack
from unroll.envs.datasets.registered import not_plain
from unroll.errors import DatasetError, EnvError
from unroll.files import write_whole

CHUNK = 1 << 20  # bytes


class Recorded(NamedTuple):
    """A finished episode of T steps."""

    observations: np.ndarray  # [T, observation_dim] float32, or uint8 where there are images
    actions: np.ndarray  # [T, …]
    rewards: np.ndarray  # [T]
    final_observation: np.ndarray
    terminated: bool


class Recorder(gym.Wrapper):
    """A wrapper that appends each finished episode to `done`. An unfinished one is dropped.

    Several environments may share the list.
    """

    def __init__(self, env: gym.Env, done: list[Recorded]):
        super().__init__(env)
        self.done = done
        self._parts = parts_of(env.observation_space)

    def _begin(self, observation: Any) -> None:
        # Copies throughout: environments change arrays that they gave, or were given, in place.
        self._observation = self._row(observation)
        self._observations: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def _row(self, observation: Any) -> np.ndarray:
        """Return an observation as the dataset holds it."""
        if self._parts is None:
            return np.array(observation, np.float32)
        try:
            return pack_one(self.observation_space, observation)
        except ValueError as error:
            raise EnvError(f"{self._name()}: {error}") from None

    def _name(self) -> str:
        return self.spec.id if self.spec else type(self.unwrapped).__name__

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._begin(observation)
        self._check_finite([])
        return observation, info

    def _check_finite(self, rewards: list[float]) -> None:
        """Raise EnvError for numbers that no policy can be trained on."""
        what = None
        if not np.isfinite(rewards[-1:]).all():
            what = f"the reward is {rewards[-1]}"
        elif not np.isfinite(self._numbers()).all():
            what = "the observation is not finite"
        if what:
            raise EnvError(f"{self._name()}: {what} after {len(rewards)} steps of an episode")

    def _numbers(self) -> np.ndarray:
        """Return the numbers of the last observation; all of them where it holds no image."""
        if self._parts is None:
            return self._observation
        return numbers(self._parts, self._observation[None])

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._observations.append(self._observation)
        self._actions.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._rewards.append(float(reward))
        self._observation = self._row(observation)
        self._check_finite(self._rewards)

        if terminated or truncated:
            episode = Recorded(
                np.asarray(self._observations),
                np.asarray(self._actions),
                np.asarray(self._rewards),
                self._observation,
                bool(terminated),
            )
            self.done.append(episode)
            self._begin(observation)
            observation = _copy(observation)  # a vector keeps it while it resets the environment
        return observation, reward, terminated, truncated, info


def _copy(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: np.array(part) for name, part in observation.items()}
    return np.array(observation)


def to_episodes(done: list[Recorded], env: gym.Env, name: str, env_kwargs: dict[str, Any] | None = None) -> Episodes:
    """Return the recorded episodes in the order in which they ended.

    They were recorded in environments like `env`, made with the arguments `env_kwargs`.

    Raises:
        DatasetError: no episode was finished.
    """
    if not done:
        raise DatasetError(f"{name}: no episode was finished, so there is nothing to record")
    space = env.action_space
    assert isinstance(space, gym.spaces.Box | gym.spaces.Discrete)
    actions = np.concatenate([episode.actions for episode in done])
    if isinstance(space, gym.spaces.Discrete):
        actions = actions.astype(np.int64) - int(space.start)
    else:
        actions = actions.astype(np.float32).reshape(len(actions), -1)
        space = flat_box(space)
    terminated = np.array([episode.terminated for episode in done])
    strange = not_plain(env_kwargs or {})
    return Episodes(
        observations=np.concatenate([episode.observations for episode in done]),
        actions=actions,
        rewards=np.concatenate([episode.rewards for episode in done]).astype(np.float32),
        lengths=np.array([len(episode.rewards) for episode in done]),
        terminated=terminated,
        truncated=~terminated,
        final_observations=np.stack([episode.final_observation for episode in done]),
        action_space=space,
        name=name,
        env_id=env.spec.id if env.spec else None,
        env_kwargs={} if strange else env_kwargs or {},
        env_doubt=f"argument {', argument '.join(strange)}" if strange else None,
        parts=parts_of(env.observation_space),
    )


def _as_played(episodes: Episodes) -> np.ndarray:
    """Return the actions as the environment was given them."""
    space = episodes.action_space
    if isinstance(space, gym.spaces.Discrete) and space.start:
        return np.asarray(episodes.actions) + int(space.start)
    return episodes.actions


def _named_env(episodes: Episodes) -> gym.Env | None:
    """Return something that Minari takes for the episodes' environment. Only its specification is asked for.

    So nothing is built, and the code of an environment need not have a name that can be imported.
    None where the episodes name none, or one of which its arguments are not all.
    """
    if episodes.env_id is None or episodes.env_doubt:
        return None
    spec = gym.envs.registration.EnvSpec(episodes.env_id)
    if episodes.env_id in gym.registry:
        spec = copy.deepcopy(gym.registry[episodes.env_id])
    given = dict(episodes.env_kwargs)
    spec.max_episode_steps = given.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs |= given
    code = spec.entry_point
    if callable(code):
        spec.entry_point = f"{code.__module__}:{getattr(code, '__qualname__', type(code).__qualname__)}"

    env: gym.Env = gym.Env()
    env.spec = spec
    return env


def check_output(output: str) -> None:
    """Check that `output`, file.hdf5 or minari:NAME-vN, is new and can be written.

    Raises:
        DatasetError: it is not.
    """
    if output.startswith("minari:"):
        from minari.dataset.minari_dataset import parse_dataset_id

        name = output.removeprefix("minari:")
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
        try:
            parse_dataset_id(name)
        except (ValueError, TypeError):
            raise DatasetError(
                f"{output}: a Minari id reads namespace/name-v0, e.g. hopper/mine-v0, with two letters or more in front"
            ) from None
        if (root / name).exists():
            raise DatasetError(f"{output}: exists in {root}; choose another version")
        return

    path = Path(output)
    if path.suffix not in (".hdf5", ".h5"):
        raise DatasetError(f"{output}: must end in .hdf5, or be minari:NAME-vN")
    if path.exists():
        raise DatasetError(f"{output}: exists; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise DatasetError(f"{output}: its folder cannot be written")


def write_hdf5(episodes: Episodes, path: str | Path, **attributes: str) -> None:
    """Write episodes to an HDF5 file with D4RL's fields, one row per step.

    The file also holds ``final_observations`` [E, …] and the attributes ``env`` and, where the
    environment has some, ``env_kwargs`` (JSON) and ``env_doubt``. Images alone are written as
    [N, height, width, channels]. Images with other parts are rows of bytes (see images.py), and the
    attribute ``parts`` (JSON) describes them.

    The file appears whole or not at all; a full disk is an OSError. Every byte is under a checksum:
    the arrays by Fletcher-32, all else by the format of HDF5 1.10.
    """
    last = episodes.starts + episodes.lengths - 1
    terminals = np.zeros(episodes.n_steps, dtype=bool)
    terminals[last] = episodes.terminated
    timeouts = np.zeros(episodes.n_steps, dtype=bool)
    # Also where the recording stopped: the file must say where episodes end.
    timeouts[last] = ~episodes.terminated

    fields = {
        "observations": episodes.observations,
        "actions": _as_played(episodes),
        "rewards": episodes.rewards,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    if episodes.final_observations is not None:
        fields["final_observations"] = episodes.final_observations

    # Images alone need no description.
    parts = episodes.parts
    if parts is not None and list(parts) == [""]:
        for name in {"observations", "final_observations"} & fields.keys():
            fields[name] = np.asarray(fields[name]).reshape(-1, *parts[""])
        parts = None

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In memory first: where a disk fills while HDF5 writes to it, the process crashes.
    content = io.BytesIO()
    with h5py.File(content, "w", libver=("v110", "v110")) as file:
        for name, values in fields.items():
            file.create_dataset(
                name,
                data=values,
                chunks=_chunks(values),
                compression="gzip",
                compression_opts=9,
                shuffle=True,
                fletcher32=True,
            )
        texts = {"env": episodes.env_id or ""}
        if episodes.env_kwargs:
            texts["env_kwargs"] = json.dumps(episodes.env_kwargs)
        if episodes.env_doubt:
            texts["env_doubt"] = episodes.env_doubt
        if parts is not None:
            texts["parts"] = json.dumps(parts)
        for name, value in (texts | attributes).items():
            # Text of a fixed length lies in the header. Text of any length would lie in a heap
            # without checksums.
            text = value.encode()
            file.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
    write_whole(path, content.getbuffer())


def _chunks(values: np.ndarray) -> tuple[int, ...] | None:
    """Choose what is compressed together: whole images, about CHUNK bytes of them. None: as HDF5 does."""
    if values.dtype != np.uint8:
        return None
    rows = max(1, CHUNK * len(values) // max(1, values.nbytes))
    return (min(rows, len(values)), *values.shape[1:])


def write_minari(episodes: Episodes, dataset_id: str, **metadata: Any) -> None:
    """Write a Minari dataset ``name-vN`` into Minari's folder.

    That is ``$MINARI_DATASETS_PATH`` or ``~/.minari/datasets``. Images are kept as they are, and not
    as JPEGs.

    Raises:
        DatasetError: a final observation is unknown, or the id is malformed or taken.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    final = episodes.final_observations
    if final is None or np.isnan(final).any():
        raise DatasetError(
            f"{episodes.name}: Minari needs the observation after each episode's last step, which is unknown here"
        )

    actions = _as_played(episodes)
    buffers = []
    for e, start in enumerate(episodes.starts):
        length = int(episodes.lengths[e])
        rows = slice(start, start + length)
        terminations = np.zeros(length, dtype=bool)
        terminations[-1] = episodes.terminated[e]
        truncations = np.zeros(length, dtype=bool)
        truncations[-1] = not episodes.terminated[e]
        buffer = EpisodeBuffer(
            id=e,
            observations=_as_shown(episodes, np.concatenate([episodes.observations[rows], final[e, None]])),
            actions=actions[rows],
            rewards=episodes.rewards[rows],
            terminations=terminations,
            truncations=truncations,
        )
        buffers.append(buffer)

    if episodes.parts is not None:
        metadata = {"jpeg_encoding": False} | metadata
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about metadata that the caller left out
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=_named_env(episodes),
                observation_space=_shown_space(episodes),
                action_space=episodes.action_space,
                **metadata,
            )
    except (ValueError, gym.error.Error) as error:  # a malformed id, or one that exists
        raise DatasetError(f"{dataset_id}: {error}") from None


def _as_shown(episodes: Episodes, rows: np.ndarray) -> Any:
    """Return rows of observations as Minari holds them: images and other parts as arrays of their own."""
    if episodes.parts is None:
        return rows
    shown = unpack(episodes.parts, rows)
    return shown.get("", shown)


def _shown_space(episodes: Episodes) -> gym.Space:
    """Return the space of these observations. Nothing is known of the bounds of numbers."""
    if episodes.parts is None:
        return gym.spaces.Box(-np.inf, np.inf, (episodes.observation_dim,), np.float32)
    shown: dict[str, gym.Space] = {}
    for name, shape in episodes.parts.items():
        if len(shape) == 3:
            shown[name] = gym.spaces.Box(0, 255, shape, np.uint8)
        else:
            shown[name] = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    return shown.get("") or gym.spaces.Dict(shown)
