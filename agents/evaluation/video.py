"""A GIF of an episode, where pictures can be drawn."""

from __future__ import annotations

import ctypes.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from unroll.agents.evaluation.play import Episode, play
from unroll.agents.evaluation.player import Player
from unroll.agents.evaluation.scoring import highest
from unroll.errors import EnvError, one_line

EVERY = 3  # steps from one picture to the next
STEPS = 300  # of the episode that are shown
PIXELS = 240


def prepare_rendering() -> str | None:
    """Choose MuJoCo's renderer; return why there can be no picture, or None.

    ``MUJOCO_GL`` naming a library that is missing makes ``import mujoco`` itself fail. So it is set only after a look,
    and never where the user has set it or has a display.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or sys.platform == "darwin":
        return None
    for library, name in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return None
    return "no EGL or OSMesa library was found (on Debian: apt-get install libegl1 libgl1-mesa-dri)"


def make_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """Make an animated GIF of RGB frames [H, W, 3].

    Raises:
        ValueError: every frame is of one colour, as broken off-screen rendering gives.
    """
    if not frames or max(float(frame.std()) for frame in frames) == 0:
        raise ValueError("every frame is of one colour: off-screen rendering is broken here")
    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return file.getvalue()


def by_mujoco(env: gym.Env) -> bool:
    """Say whether MuJoCo draws the pictures, of a size that its environments take as arguments."""
    return any(cls.__name__ in ("MujocoEnv", "BaseRobotEnv") for cls in type(env.unwrapped).__mro__)


def try_gif(player: Player, evaluation: dict[str, Any], tell: Callable[[str], Any]) -> bytes | None:
    """Make a GIF of the beginning of one episode at the highest target.

    Where rendering is missing, tell why and return None.
    """
    frames: list[Any] = []
    episode = Episode(evaluation["seeds"][0], highest(evaluation)["target_return"])
    missing = prepare_rendering()  # what MuJoCo needs; other environments draw without

    def make() -> gym.Env:
        nonlocal missing
        env = player.make_env(render_mode="rgb_array")
        if not by_mujoco(env):  # a width and a height may be the world's own
            missing = None
            return env
        if {"width", "height"} & player.env_kwargs.keys():
            return env
        try:  # off-screen rendering without a GPU takes a tenth of a second for a large picture
            small = player.make_env(render_mode="rgb_array", width=PIXELS, height=PIXELS)
        except EnvError:
            return env
        env.close()
        return small

    def keep(env: gym.Env) -> None:
        if episode.length % EVERY == 0 and episode.length < STEPS:
            frames.append(np.array(env.render()))  # a copy: it may be drawn into again

    most = min(STEPS, player.max_steps)
    try:
        play(player.agent, make, [episode], deterministic=player.deterministic, on_step=keep, max_steps=most)
        return make_gif(frames, fps=20)
    except Exception as error:  # OpenGL and its bindings raise whatever they like, and a picture is not worth a run
        tell(f"no video: {missing or one_line(error)}")
    return None
