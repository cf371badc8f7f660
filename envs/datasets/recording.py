"""Record episodes while an agent plays, and write them to a file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import h5py
import numpy as np

from unroll.envs.datasets.episodes import Episodes
from unroll.errors import DatasetError


class Recorded(NamedTuple):
    """One finished episode of T steps."""

    observations: np.ndarray  # [T, observation_dim]
    actions: np.ndarray  # [T, …]
    rewards: np.ndarray  # [T]
    final_observation: np.ndarray
    terminated: bool


class Recorder(gym.Wrapper):
    """Appends each finished episode to ``done``, a list that several environments may share. An unfinished one is
    dropped."""

    def __init__(self, env: gym.Env, done: list[Recorded]):
        super().__init__(env)
        self.done = done
        self._steps: list[tuple[np.ndarray, Any, float]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._steps, self._observation = [], np.asarray(observation, np.float32)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps.append((self._observation, np.array(action), float(reward)))
        self._observation = np.asarray(observation, np.float32)
        if terminated or truncated:
            observations, actions, rewards = (np.asarray(column) for column in zip(*self._steps, strict=True))
            self.done.append(Recorded(observations, actions, rewards, self._observation, terminated))
            self._steps = []
        return observation, reward, terminated, truncated, info


def to_episodes(done: list[Recorded], env: gym.Env, name: str) -> Episodes:
    """What was recorded in environments like ``env``, in the order in which the episodes ended."""
    if not done:
        raise DatasetError(f"{name}: no episode was finished, so there is nothing to record")
    space = env.action_space
    assert isinstance(space, gym.spaces.Box | gym.spaces.Discrete)
    terminated = np.array([episode.terminated for episode in done])
    return Episodes(
        observations=np.concatenate([episode.observations for episode in done]),
        actions=np.concatenate([episode.actions for episode in done]).astype(
            np.int64 if isinstance(space, gym.spaces.Discrete) else np.float32
        ),
        rewards=np.concatenate([episode.rewards for episode in done]).astype(np.float32),
        lengths=np.array([len(episode.rewards) for episode in done]),
        terminated=terminated,
        truncated=~terminated,
        final_observations=np.stack([episode.final_observation for episode in done]),
        action_space=space,
        name=name,
        env_id=env.spec.id if env.spec else None,
    )


def check_output(output: str) -> None:
    """Raise DatasetError unless ``output`` (file.hdf5 or minari:NAME-vN) is new and can be written."""
    if output.startswith("minari:"):
        from minari.dataset.minari_dataset import parse_dataset_id

        name = output.removeprefix("minari:")
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
        try:
            parse_dataset_id(name)
        except (ValueError, TypeError):
            raise DatasetError(f"{output}: a Minari id reads namespace/name-v0, e.g. hopper/mine-v0") from None
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
    """One row per step under D4RL's field names, plus ``final_observations`` [E, …] and the attribute ``env``.

    Written beside ``path`` and renamed, so that a reader never sees half a file. Every byte is under a checksum: the
    arrays by Fletcher-32, all else by the format of HDF5 1.10.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    last = episodes.starts + episodes.lengths - 1
    terminals, timeouts = np.zeros((2, episodes.n_steps), dtype=bool)
    terminals[last] = episodes.terminated
    timeouts[last] = ~episodes.terminated  # also where the recording stopped: the file must say where episodes end
    fields = {
        "observations": episodes.observations,
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    if episodes.final_observations is not None:
        fields["final_observations"] = episodes.final_observations
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        for name, values in fields.items():
            file.create_dataset(
                name, data=values, compression="gzip", compression_opts=9, shuffle=True, fletcher32=True
            )
        for name, value in {"env": episodes.env_id or "", **attributes}.items():
            text = value.encode()  # of fixed length: text of any length lies in a heap without checksums
            file.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
    os.replace(temporary, path)


def write_minari(episodes: Episodes, dataset_id: str, **metadata: str) -> None:
    """A Minari dataset ``name-vN`` in Minari's own folder (``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``)."""
    import minari
    from minari.data_collector import EpisodeBuffer

    if episodes.final_observations is None or np.isnan(episodes.final_observations).any():
        raise DatasetError(
            f"{episodes.name}: Minari needs the observation after each episode's last step, which is unknown here"
        )
    buffers = []
    for e, (start, length) in enumerate(zip(episodes.starts, episodes.lengths, strict=True)):
        rows = slice(start, start + length)
        terminations, truncations = np.zeros((2, length), dtype=bool)
        terminations[-1], truncations[-1] = episodes.terminated[e], not episodes.terminated[e]
        buffers.append(
            EpisodeBuffer(
                id=e,
                observations=np.concatenate([episodes.observations[rows], episodes.final_observations[e, None]]),
                actions=episodes.actions[rows],
                rewards=episodes.rewards[rows],
                terminations=terminations,
                truncations=truncations,
            )
        )
    unbounded = gym.spaces.Box(-np.inf, np.inf, (episodes.observation_dim,), np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about metadata that the caller left out
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=episodes.env_id,
                observation_space=unbounded,
                action_space=episodes.action_space,
                **metadata,
            )
    except ValueError as error:  # a malformed id, or one that exists
        raise DatasetError(f"{dataset_id}: {error}") from None
