"""An exception of an environment's own code as one line: what, where, and after which action."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np

from unroll.errors import EnvError


def env_fault(error: BaseException, who: str, where: str = "") -> EnvError:
    """Make an EnvError of whatever an environment raised; its ``details`` are the whole traceback."""
    text = f"{who}: {in_words(error)}" if who else in_words(error)
    fault = EnvError(f"{text}, {where}" if where else text)
    fault.details = "".join(traceback.format_exception(error))
    return fault


def numbered(env_id: str, i: int) -> str:
    """Name environment i of a vector."""
    return f"environment {i} ({env_id})"


def in_words(error: BaseException) -> str:
    """Say what an exception is, and in which line it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    name = type(error).__name__
    what = f"{name}: {text}" if text else name
    return f"{what} ({Path(frame.filename).name}, line {frame.lineno})"


def after(action: Any) -> str:
    """Say after which action something happened."""
    return f"after the action {np.array2string(np.asarray(action), precision=4, threshold=8)}"
