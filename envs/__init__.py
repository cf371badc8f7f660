"""Datasets, ``load_episodes("minari:…")``, and environments, ``make_vec_env("CartPole-v1")``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ == "envs":
    raise ImportError("this folder is the package unroll.envs: import unroll.envs")

if TYPE_CHECKING:
    from unroll.envs.datasets.episodes import Episodes as Episodes
    from unroll.envs.datasets.sources import load_episodes as load_episodes
    from unroll.envs.gymnasium_vector import GymnasiumVector as GymnasiumVector
    from unroll.envs.make import make_env as make_env
    from unroll.envs.make import make_vec_env as make_vec_env
    from unroll.envs.rsl_rl import RslRlEnv as RslRlEnv
    from unroll.envs.tensor import TensorEnv as TensorEnv
    from unroll.envs.tensor_tasks import make_tensor_env as make_tensor_env
    from unroll.errors import DatasetError as DatasetError
    from unroll.errors import EnvError as EnvError

_MODULES = {
    "DatasetError": "unroll.errors",
    "EnvError": "unroll.errors",
    "Episodes": "unroll.envs.datasets.episodes",
    "GymnasiumVector": "unroll.envs.gymnasium_vector",
    "RslRlEnv": "unroll.envs.rsl_rl",
    "TensorEnv": "unroll.envs.tensor",
    "load_episodes": "unroll.envs.datasets.sources",
    "make_env": "unroll.envs.make",
    "make_tensor_env": "unroll.envs.tensor_tasks",
    "make_vec_env": "unroll.envs.make",
}
__all__ = [
    "DatasetError",
    "EnvError",
    "Episodes",
    "GymnasiumVector",
    "RslRlEnv",
    "TensorEnv",
    "load_episodes",
    "make_env",
    "make_tensor_env",
    "make_vec_env",
]


def __getattr__(name: str) -> Any:
    """Import a name on its first use: a dataset needs no simulator, and an environment no HDF5."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
