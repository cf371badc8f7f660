"""Zip files that RecurrentPPO did not write, told before anything that is pickled in them is read."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import open_path

from unroll.errors import CheckpointError

# Libraries whose policies have other networks.
FOREIGN = ("stable_baselines3", "sb3_contrib", "sbx")
DOCS = "docs/from_sb3_contrib.md"


def check_zip(path: str | Path | io.BufferedIOBase) -> None:
    """Raise CheckpointError for a file that holds no agent, or an agent of another library.

    The class of the policy is in the zip's JSON by name, so nothing is unpickled. A file that does not exist raises
    FileNotFoundError, as in Stable-Baselines3.
    """
    file = open_path(path, "r", suffix="zip")
    begin = file.tell()
    try:
        written = _policy_of(file, path)
    finally:
        # A file that the caller has opened is read from its beginning after this.
        if file is path:
            file.seek(begin)
        else:
            file.close()
    if written.partition(".")[0] in FOREIGN:
        raise CheckpointError(
            f"{path}: holds a policy of {written}, whose network is another one, and cannot be loaded by RecurrentPPO; "
            f"{DOCS} says how its code runs here"
        )


def _policy_of(file: Any, path: Any) -> str:
    """Return the module of the policy's class as the zip's JSON has it."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            text = archive.read("data") if "data" in names else b""
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path}: is no zip file of RecurrentPPO, or a damaged one") from None
    if not {"data", "policy.pth"} <= set(names):
        raise CheckpointError(
            f"{path}: holds no agent of RecurrentPPO; a policy that was saved by itself is loaded by its class"
        )
    try:
        written = json.loads(text)["policy_class"]["__module__"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: does not say whose policy it holds, and is damaged or of no agent") from None
    return str(written)
