"""Load D4RL's datasets by id.

Their files are read directly, so that neither d4rl nor MuJoCo 2.1 is needed.

A file is looked for in D4RL's own download folder. With ``download`` it is then fetched from the
address in ``data/d4rl.json``. Last, an installed ``d4rl`` package is asked. That happens in a
process of its own, because importing the package may raise or print anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.reference import d4rl_table
from unroll.envs.datasets.sources.download import download_hdf5
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.errors import DatasetError

log = logging.getLogger(__name__)

# The environment of today for each of D4RL's tasks, to evaluate a policy in. Ant is missing because
# its observation has 111 numbers in D4RL and 105 or 27 in Gymnasium. The mazes and the kitchen are
# missing because their tasks or observations were changed.
COUNTERPART = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "door": "AdroitHandDoor-v1",
    "hammer": "AdroitHandHammer-v1",
    "pen": "AdroitHandPen-v1",
    "relocate": "AdroitHandRelocate-v1",
}

# The program that asks the package ``d4rl``: it writes the dataset argv[1] to the file argv[2].
FROM_PACKAGE = """
import contextlib, importlib, sys
import d4rl, gym, h5py
for module in ("gym_mujoco", "locomotion", "pointmaze", "hand_manipulation_suite", "kitchen"):
    with contextlib.suppress(Exception):  # registers its environments, if its simulator is there
        importlib.import_module("d4rl." + module)
data = gym.make(sys.argv[1]).get_dataset()
with h5py.File(sys.argv[2], "w") as file:
    for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations"):
        if name in data:
            file[name] = data[name]
"""


def load_d4rl(dataset_id: str, download: bool = False) -> Episodes:
    """Load a dataset with D4RL's reference returns and the environment of today to evaluate in.

    Raises:
        DatasetError: there is no such dataset, its file is missing and cannot be fetched, or it
        cannot be read.
    """
    table = d4rl_table()
    if dataset_id not in table:
        hint = "ids read like hopper-medium-v2"
        near = difflib.get_close_matches(dataset_id, list(table), n=3)
        if near:
            hint = f"did you mean {', '.join(near)}?"
        raise DatasetError(f"d4rl:{dataset_id}: unknown; {hint}")

    url = table[dataset_id]["url"]
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")
    path = folder / url.rsplit("/", 1)[1]
    if download and not path.exists():
        download_hdf5(url, path)

    env_id = COUNTERPART.get(dataset_id.split("-")[0])
    if path.exists():
        episodes: Episodes | None = load_hdf5(path, env_id, dataset_id)
    else:
        episodes = _from_package(dataset_id, env_id)
    if episodes is None:
        raise DatasetError(f"d4rl:{dataset_id}: not found at {path}; --download true fetches it from {url}")

    return dataclasses.replace(episodes, name=dataset_id, env_id=env_id)


def _from_package(dataset_id: str, env_id: str | None) -> Episodes | None:
    """Get a dataset from the package ``d4rl``; None if it is not installed or does not work."""
    if importlib.util.find_spec("d4rl") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "data.hdf5"
        command = [sys.executable, "-P", "-c", FROM_PACKAGE, dataset_id, str(output)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0:
            reason = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            log.warning("the installed d4rl does not work: %s", reason[-1])
            return None
        return load_hdf5(output, env_id, dataset_id)
