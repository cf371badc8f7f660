"""Datasets and environments: ``load_episodes("minari:…" | "d4rl:…" | path)`` and ``make_vec_env(env_id)``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.datasets import DatasetError as DatasetError
    from envs.datasets import Episodes as Episodes
    from envs.make import make_vec_env as make_vec_env
    from envs.sources import load_episodes as load_episodes

_MODULES = {
    "DatasetError": "envs.datasets",
    "Episodes": "envs.datasets",
    "load_episodes": "envs.sources",
    "make_vec_env": "envs.make",
}
__all__ = ["DatasetError", "Episodes", "load_episodes", "make_vec_env"]


def __getattr__(name: str) -> Any:
    """Imported on first use: ``python -m envs.sources`` must not find its module imported by its own package."""
    if name not in _MODULES:
        raise AttributeError(f"module 'envs' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
