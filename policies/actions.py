"""Actions as a policy sees them: embedded when they are past, predicted and scored when they are next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Action(nn.Module, ABC):
    """One kind of action space."""

    @abstractmethod
    def embedding(self) -> nn.Module:
        """Make a new module from ``encode(action)`` to vectors [B, …, d_model]."""

    @abstractmethod
    def encode(self, action: Tensor) -> Tensor:
        """Convert actions, as a dataset holds and ReturnToGo shows them, to what the embedding and the error take."""

    @abstractmethod
    def predict(self, features: Tensor) -> Tensor:
        """Compute from features [B, …, d_model] what ``error`` and ``choose`` take."""

    @abstractmethod
    def error(self, prediction: Tensor, action: Tensor) -> Tensor:
        """Compute the loss of each prediction, [B, …]."""

    @abstractmethod
    def choose(self, prediction: Tensor, deterministic: bool) -> Tensor:
        """Choose the actions to take, in the units of the environment."""


class BoxAction(Action):
    """Continuous actions: a tanh scaled to the bounds, with the squared error averaged over the dimensions.

    There is no distribution, so a stochastic choice is the deterministic one. Where both bounds are the same there is
    no choice.
    """

    center: Tensor
    scale: Tensor
    unit: Tensor

    def __init__(self, space: gym.spaces.Box, d_model: int):
        super().__init__()
        self.register_buffer("center", torch.from_numpy((space.high + space.low) / 2).float())
        self.register_buffer("scale", torch.from_numpy((space.high - space.low) / 2).float())
        # a dimension without a choice is not divided by 0
        self.register_buffer("unit", torch.where(self.scale > 0, self.scale, 1.0), persistent=False)
        self.head = nn.Linear(d_model, space.shape[0])

    def embedding(self) -> nn.Module:
        return nn.Linear(self.head.out_features, self.head.in_features)

    def encode(self, action: Tensor) -> Tensor:
        return (action - self.center) / self.unit

    def predict(self, features: Tensor) -> Tensor:
        return torch.tanh(self.head(features))

    def error(self, prediction: Tensor, action: Tensor) -> Tensor:
        return (prediction - self.encode(action)).square().mean(-1)

    def choose(self, prediction: Tensor, deterministic: bool) -> Tensor:
        return self.center + self.scale * prediction


class DiscreteAction(Action):
    """One of n actions: logits and cross-entropy. The class n stands for "no action came before".

    Actions are learned and shown as 0 to n - 1, and played as the environment counts them, from ``start``."""

    def __init__(self, space: gym.spaces.Discrete, d_model: int):
        super().__init__()
        self.start = int(space.start)
        self.head = nn.Linear(d_model, int(space.n))

    def embedding(self) -> nn.Module:
        return nn.Embedding(self.head.out_features + 1, self.head.in_features)

    def encode(self, action: Tensor) -> Tensor:
        return action

    def predict(self, features: Tensor) -> Tensor:
        return self.head(features)

    def error(self, prediction: Tensor, action: Tensor) -> Tensor:
        return F.cross_entropy(prediction.flatten(0, -2), action.flatten(), reduction="none").view(action.shape)

    def choose(self, prediction: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            choice = prediction.argmax(-1)
        else:
            choice = torch.distributions.Categorical(logits=prediction).sample()
        return choice + self.start if self.start else choice


def make_action(space: gym.Space, d_model: int) -> Action:
    """Make the Action of a Box or Discrete space.

    Raises:
        ValueError: The space is of another kind, or its bounds are not finite.
    """
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteAction(space, d_model)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        with np.errstate(over="ignore"):
            scaled = np.isfinite(space.high - space.low).all() and np.isfinite(space.high + space.low).all()
        if scaled:
            return BoxAction(space, d_model)
    raise ValueError(f"action space {space} is not supported: a bounded Box of one axis or a Discrete is needed")


def describe_space(space: gym.Space) -> dict[str, Any]:
    """Describe a space as plain data, for a checkpoint."""
    if isinstance(space, gym.spaces.Discrete):
        described: dict[str, Any] = {"type": "Discrete", "n": int(space.n)}
        if space.start:
            described["start"] = int(space.start)
        return described
    assert isinstance(space, gym.spaces.Box)
    return {"type": "Box", "low": space.low.tolist(), "high": space.high.tolist()}


def build_space(description: dict[str, Any]) -> gym.spaces.Box | gym.spaces.Discrete:
    """Build the space that ``describe_space`` described. A description of anything else raises any exception."""
    if description["type"] == "Discrete":
        return gym.spaces.Discrete(int(description["n"]), start=int(description.get("start", 0)))
    if description["type"] != "Box":
        raise ValueError(f"no action space {description['type']!r}")
    # a number beyond float32 becomes infinity, which make_action refuses
    with np.errstate(over="ignore"):
        low = np.array(description["low"], np.float32)
        high = np.array(description["high"], np.float32)
    return gym.spaces.Box(low, high)
