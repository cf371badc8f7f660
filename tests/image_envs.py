"""Environments that show images, alone and beside other things, and episodes recorded in them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import Recorded, Recorder, to_episodes
from unroll.envs.make import make_env

LENGTH = 9
GRID = spaces.Box(0, 255, (5, 4, 3), np.uint8)
SPACES = {
    "image": spaces.Box(0, 255, (36, 37, 3), np.uint8),
    "grid": GRID,
    # named so that the numbers begin in the middle of a row, at no multiple of four bytes
    "dict": spaces.Dict(
        a=spaces.Box(0, 255, (3, 3, 1), np.uint8),
        mission=spaces.Text(5),
        speed=spaces.Box(-5, 5, (2, 2), np.float32),
        turn=spaces.Discrete(3, start=1),
        view=GRID,
    ),
}


class Pictures(gym.Env):
    """Shows noise. It pays 1 for action 0, and ends or is cut off after nine steps."""

    action_space = spaces.Discrete(3)

    def __init__(self, kind: str = "dict", render_mode: str | None = None):
        self.observation_space = SPACES[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        over = self.t == LENGTH
        ends = bool(self.np_random.random() < 0.5)
        return self.observation_space.sample(), float(action == 0), over and ends, over and not ends, {}


def name_of(kind: str) -> str:
    return f"Pictures-{kind}-v0"


for registered in SPACES:
    if name_of(registered) not in gym.registry:
        gym.register(name_of(registered), Pictures, kwargs={"kind": registered})


class Watched(gym.Wrapper):
    """Keeps what the environment showed."""

    def __init__(self, env: gym.Env, shown: list[Any]):
        super().__init__(env)
        self.shown = shown

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self.shown.append(observation)
        return observation, info

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.shown.append(result[0])
        return result


def record(kind: str, n: int = 4, shown: list[Any] | None = None) -> Episodes:
    """Record n episodes of random actions. ``shown`` takes what the environment showed, ends included."""
    done: list[Recorded] = []
    env = make_env(name_of(kind), images=True)
    recorder = Recorder(env if shown is None else Watched(env, shown), done)
    rng = np.random.default_rng(0)
    for seed in range(n):
        recorder.reset(seed=seed)
        for _ in range(LENGTH):
            recorder.step(rng.integers(3))
    return to_episodes(done, env, kind)
