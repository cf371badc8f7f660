"""Checkpoints: a folder of safetensors and JSON under a SHA-256 manifest.

They are written whole or not at all, and read without unpickling anything.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unroll.errors import CheckpointError
from unroll.zoo import find_run

TENSORS = "tensors.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
MOST_JSON = 1 << 26  # bytes


def write_checkpoint(folder: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write ``folder``. A crash leaves the old one, at worst under the name ``.<name>.old``, or the new one.

    Raises:
        CheckpointError: something that is not a checkpoint has that name.
        OSError: it cannot be written; the old one is intact.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder}: exists and is not a checkpoint, so it is left alone; choose another name")
    replace_folder(folder, lambda temporary: _write_files(temporary, tensors, state))


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder of a temporary name, flush it to the disk and rename it to ``folder``.

    What had that name before is gone then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        # A folder cannot be replaced at once: the old one steps aside, and comes back if we are killed here.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; left where writing failed
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_files(folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    except SafetensorError as error:  # a full disk, which is an OSError everywhere else
        raise OSError(f"{folder / TENSORS}: {error}") from error
    (folder / STATE).write_text(json.dumps(state, indent=1))
    # safetensors writes for its owner alone; whoever may read the rest may read the weights.
    (folder / TENSORS).chmod((folder / STATE).stat().st_mode & 0o777)
    manifest = {}
    for path in (folder / TENSORS, folder / STATE):
        manifest[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_checkpoint(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors (on the CPU) and the state of a checkpoint whose every byte agrees with its manifest.

    Raises:
        CheckpointError: a file is missing, cut or changed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        return _read_files(folder)
    except (CheckpointError, FileNotFoundError) as error:
        if isinstance(error, CheckpointError) and folder.is_dir():
            raise
        raise gone(folder) from None


def gone(folder: Path) -> CheckpointError:
    """The error of a checkpoint that is removed while it is read."""
    return CheckpointError(f"{folder}: was removed while it was read, as a run does that is learning; try again")


def _read_files(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    for name in (MANIFEST, TENSORS, STATE):
        if (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name}: a link, where a checkpoint has files of its own")

    manifest = _json(folder / MANIFEST)
    if set(manifest) != {TENSORS, STATE} or not all(isinstance(entry, dict) for entry in manifest.values()):
        raise CheckpointError(f"{folder / MANIFEST}: not the manifest of a checkpoint")
    for name, entry in manifest.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes where the manifest says {entry.get('bytes')}")
        if _sha256(path) != entry.get("sha256"):
            raise CheckpointError(f"{path}: damaged, its SHA-256 is not the manifest's")

    try:
        return load_file(folder / TENSORS), _json(folder / STATE)
    except CheckpointError:
        raise
    except (SafetensorError, LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder / TENSORS}: not a safetensors file ({error})") from None


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, ``step_<n>``, oldest first."""
    found = []
    for path in (Path(run) / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match:
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest_checkpoint(run: str | Path) -> Path:
    """The last checkpoint of a run folder or a run of the zoo; the folder itself if it is a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    run = find_run(run)
    if (run / MANIFEST).is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder")
    if not checkpoints(run):
        raise CheckpointError(f"{run}: holds no checkpoint; is it the folder of a run?")
    return checkpoints(run)[-1]


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """Read the state of a checkpoint without its tensors, and without a check of its manifest.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _json(Path(checkpoint) / STATE)


def hash_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's manifest, which stands for all of its bytes.

    Raises:
        CheckpointError: it has been removed.
    """
    try:
        return _sha256(checkpoint / MANIFEST)
    except FileNotFoundError:
        raise gone(checkpoint) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors; AdamW and LAMB keep nothing else."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": value for i, slots in state.items() for key, value in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave; the groups' options stay those of ``optimizer``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@functools.cache
def installed_versions() -> dict[str, str]:
    """The versions that a result depends on, MuJoCo's above all: contact physics differs between releases."""
    packages = ("torch", "numpy", "gymnasium", "mujoco", "minari", "stable-baselines3")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MOST_JSON:
            raise CheckpointError(f"{path}: {size:,} bytes, more than a checkpoint needs")
        content = json.loads(path.read_text())
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete, or this is not one") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
