"""Fixtures for all tests: no test reads or writes the user's own datasets and caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import h5py
import hypothesis
import numpy as np
import pytest
import torch

from unroll.envs.datasets.episodes import Episodes
from unroll.errors import BackboneError
from unroll.policies.backbones import find_backbone, import_own

hypothesis.settings.register_profile("fast", max_examples=8, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=200, deadline=None)
hypothesis.settings.load_profile("fast")
torch.set_num_threads(1)  # the models are tiny; more threads would only wait for one another


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backbone", help="run tests/laws/test_laws.py over this one alone: a name, or module:Class of your own"
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--backbone")
    try:
        if name and ":" in name:
            import_own(name)
        if name:
            find_backbone(name)
    except BackboneError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def fields() -> dict[str, np.ndarray]:
    """D4RL's fields for three episodes of 4 (terminal), 3 (timeout) and 5 (terminal) steps: row t observes t."""
    n = 12
    terminals, timeouts = np.zeros((2, n), bool)
    terminals[[3, 11]], timeouts[6] = True, True
    return {
        "observations": np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, 1),
        "actions": np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2),
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(fields: dict[str, np.ndarray], **attributes: str) -> Path:
        path = tmp_path / "data.hdf5"
        with h5py.File(path, "w") as file:
            for name, values in fields.items():
                file[name] = values
            file.attrs.update(attributes)
        return path

    return write


@pytest.fixture
def make_episodes() -> Callable[..., Episodes]:
    def make(lengths: list[int], seed: int = 0, discrete: bool = False) -> Episodes:
        """Random episodes whose observation is (row, noise)."""
        rng, n = np.random.default_rng(seed), sum(lengths)
        actions = rng.integers(3, size=n) if discrete else rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        terminated = rng.random(len(lengths)) < 0.5
        return Episodes(
            observations=np.stack([np.arange(n), rng.normal(size=n)], 1).astype(np.float32),
            actions=actions,
            rewards=rng.normal(size=n).astype(np.float32),
            lengths=np.array(lengths, np.int64),
            terminated=terminated,
            truncated=~terminated,
            final_observations=rng.normal(size=(len(lengths), 2)).astype(np.float32),
            action_space=gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1, 1, (2,), np.float32),
            name="test",
        )

    return make
