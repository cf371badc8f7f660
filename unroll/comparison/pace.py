"""How many steps a backbone makes in a given time, so that backbones can be compared at equal time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from filelock import FileLock
from stable_baselines3.common.callbacks import BaseCallback

from unroll.agents import AGENTS
from unroll.configs import RunConfig
from unroll.files import write_whole

SECONDS = 10.0  # of a measurement; its first part is not counted: kernels are compiled, memory is fetched
UNCOUNTED = 0.3


def steps_in(minutes: float, config: RunConfig, name: str, file: Path) -> int:
    """The steps that the agent of a config learns for in ``minutes``, evaluations aside.

    The pace under ``name`` is measured once and kept in ``file``, so that a command that is repeated, or runs on
    several machines, means the same runs.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        known = json.loads(file.read_text()) if file.is_file() else {}
        if name not in known:
            known[name] = measure(config)
            write_whole(file, json.dumps(known, indent=1))
    return max(1, round(known[name] * 60 * minutes))


def measure(config: RunConfig) -> float:
    """Steps per second of the agent of a config, rollouts and updates together."""
    if config.threads:
        torch.set_num_threads(config.threads)
    watch = Stopwatch()
    training = AGENTS[config.agent].training(config, lambda _: None)
    training.agent.learn(10**9, watch)
    return watch.rate()


class Stopwatch(BaseCallback):
    """Ends the learning after SECONDS, and not before three updates."""

    def __init__(self) -> None:
        super().__init__()
        self.laps: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.laps.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return len(self.laps) < 4 or time.perf_counter() - self.laps[0][0] < SECONDS

    def rate(self) -> float:
        began, ended = self.laps[0][0], self.laps[-1]
        first = next(lap for lap in self.laps[1:] if lap[0] - began >= UNCOUNTED * SECONDS or lap is self.laps[-2])
        return (ended[1] - first[1]) / (ended[0] - first[0])
