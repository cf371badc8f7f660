"""Measure how many steps a backbone makes in a given time, so that backbones can be compared at equal time."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch
from filelock import FileLock
from stable_baselines3.common.callbacks import BaseCallback

from unroll.agents import AGENTS
from unroll.comparison.grid import MAY_DIFFER
from unroll.configs import RunConfig, plain_config
from unroll.files import write_whole

SECONDS = 10.0  # of a measurement
UNCOUNTED = 0.3  # the share of it at its beginning, in which kernels are compiled and RAM is allocated
FOREVER = 10**9  # steps
# Fields on which the pace does not depend, or which may differ between the machines of a grid.
NO_MATTER = {"seed", "steps", "evaluation", *MAY_DIFFER}


def steps_in(minutes: float, config: RunConfig, name: str, file: Path) -> int:
    """Return the steps that the agent of a config learns for in ``minutes``, evaluations aside.

    The pace is measured once and kept in ``file`` under ``name`` and what it depends on. So a command that is repeated,
    or that runs on several machines, means the same runs, and one with other flags means others.
    """
    name = f"{name} {fingerprint(config)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        known = {}
        if file.is_file():
            known = json.loads(file.read_text())
        if name not in known:
            known[name] = measure(config)
            write_whole(file, json.dumps(known, indent=1))
    return max(1, round(known[name] * 60 * minutes))


def fingerprint(config: RunConfig) -> str:
    """Return a few letters that are others for a config whose runs may have another pace."""
    fields = {key: value for key, value in plain_config(config).items() if key not in NO_MATTER}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def measure(config: RunConfig) -> float:
    """Measure the steps per second of the agent of a config, rollouts and updates together."""
    if config.threads:
        torch.set_num_threads(config.threads)
    watch = Stopwatch()
    training = AGENTS[config.agent].training(config, lambda _: None)
    training.agent.learn(FOREVER, watch)
    return watch.rate()


class Stopwatch(BaseCallback):
    """A callback that ends the learning after SECONDS, and not before three updates.

    ``laps`` has the time and the number of steps at the start of each rollout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.laps: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.laps.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return len(self.laps) < 4 or time.perf_counter() - self.laps[0][0] < SECONDS

    def rate(self) -> float:
        """Return the steps per second from the first lap that counts to the last one."""
        began, _ = self.laps[0]
        end_time, end_step = self.laps[-1]

        # At least one whole lap is counted, however slow the laps are.
        counted = [lap for lap in self.laps[1:-1] if lap[0] - began >= UNCOUNTED * SECONDS]
        start_time, start_step = next(iter(counted), self.laps[-2])
        return (end_step - start_step) / (end_time - start_time)
