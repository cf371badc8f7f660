"""Find out whether pictures of MuJoCo can be drawn here, before one is asked for."""

from __future__ import annotations

import ctypes.util
import io
import os
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image


def prepare_rendering() -> str | None:
    """Choose MuJoCo's renderer; returns why there can be no picture, or None.

    ``MUJOCO_GL`` naming a library that is missing makes ``import mujoco`` itself fail, so it is set only after a look,
    and never when the user has set it or has a display.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or sys.platform == "darwin":
        return None
    for library, name in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return None
    return "no EGL or OSMesa library was found (on Debian: apt-get install libegl1 libgl1-mesa-dri)"


def make_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """An animated GIF of RGB frames [H, W, 3].

    Raises:
        ValueError: every frame is of one colour, as broken off-screen rendering gives.
    """
    if not frames or max(float(frame.std()) for frame in frames) == 0:
        raise ValueError("every frame is of one colour: off-screen rendering is broken here")
    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return file.getvalue()
