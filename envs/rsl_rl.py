"""Simulators with the interface of rsl_rl's VecEnv, as Isaac Lab, mjlab and MuJoCo Playground have it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unroll.envs.tensor import TensorEnv
from unroll.errors import EnvError

log = logging.getLogger(__name__)


class Simulator(Protocol):
    """What is used of rsl_rl's VecEnv (Schwarke et al. 2025, arXiv 2509.10771).

    It resets by itself the environments whose episode is over.
    """

    num_envs: int
    num_actions: int
    device: torch.device | str

    def get_observations(self) -> Any:
        """Return what the environments show now, by the names of groups."""

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        """Return observations, rewards, which episodes are over, and extras: ``time_outs``, those that were cut."""


class RslRlEnv(TensorEnv):
    """A simulator of tensors for RecurrentPPO.

    It shows the first observation of an episode in the place of the last one of the episode before. So the value of the
    last step stands for the rewards that a time limit cuts off, as in rsl_rl itself.

    Args:
        simulator: it has rsl_rl's interface; neither rsl_rl nor tensordict is needed.
        group: the name of the observations that the policy reads.
        action_bound: actions are clipped to plus and minus this, since Stable-Baselines3 wants bounds.

    Raises:
        EnvError: there are no such observations, or they are no rows of numbers.
    """

    def __init__(self, simulator: Simulator, group: str = "policy", action_bound: float = 100.0):
        self.simulator = simulator
        self.group = group
        self.name = type(simulator).__name__
        shown = self._read(simulator.get_observations())
        if shown.ndim != 2:
            raise EnvError(f"{self.name} shows {group} of shape {tuple(shown.shape)}; rows of numbers are needed")
        super().__init__(
            simulator.num_envs,
            spaces.Box(-np.inf, np.inf, (shown.shape[1],), np.float32),
            spaces.Box(-action_bound, action_bound, (simulator.num_actions,), np.float32),
            simulator.device,
        )
        log.warning(
            "%s does not show the last observation of an episode: where a time limit ends one, the value of the step "
            "before stands for the rest",
            self.name,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Begin anew where the simulator can, and go on where it is elsewhere. It keeps random numbers of its own."""
        if hasattr(self.simulator, "reset"):
            self.simulator.reset()
        return self._read(self.simulator.get_observations()), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        observations, rewards, dones, extras = self.simulator.step(actions)
        over = dones.bool()
        cut = torch.zeros_like(over)
        if "time_outs" in extras:
            cut = over & extras["time_outs"].bool()
        return self._read(observations), rewards, over & ~cut, cut, {}

    def close_extras(self, **kwargs: Any) -> None:
        if hasattr(self.simulator, "close"):
            self.simulator.close()

    def _read(self, observations: Any) -> Tensor:
        """Take the group that the policy reads."""
        try:
            shown: Tensor = observations[self.group]
        except (KeyError, IndexError, TypeError) as error:
            kind = type(observations).__name__
            raise EnvError(f"{self.name} shows no {self.group!r} in its {kind} of observations") from error
        return shown
