"""Actions as a policy sees them: embedded when they are past, predicted and scored when they are next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Action(nn.Module, ABC):
    """One kind of action space."""

    is_distribution: ClassVar[bool] = True  # whether there is anything to draw from

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

    is_distribution = False

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
        return nn.Linear(len(self.scale), self.head.in_features)

    def encode(self, action: Tensor) -> Tensor:
        return (action - self.center) / self.unit

    def predict(self, features: Tensor) -> Tensor:
        return torch.tanh(self.head(features))

    def error(self, prediction: Tensor, action: Tensor) -> Tensor:
        return (prediction - self.encode(action)).square().mean(-1)

    def choose(self, prediction: Tensor, deterministic: bool) -> Tensor:
        return self.center + self.scale * prediction


class MixtureAction(BoxAction):
    """Continuous actions that were drawn and then cut at the bounds: a Gaussian, or a mixture of several.

    An agent that explores draws an action and clips it, so a third or more of what it recorded can lie at a bound. Such
    an action says only that what was drawn lies beyond, and its likelihood is the probability of all that does (Tobin
    1958; for the gradient of a policy, Fujita & Maeda 2018, arXiv 1802.07564). The means are then those of what was
    drawn, wherever they lie; the mean of what was recorded, which the squared error learns, lies nearer to the middle.
    The error is -log p of the action, scaled to [-1, 1], for each dimension.

    Args:
        modes: how many Gaussians. Each has a deviation for each dimension, which is the same whatever is observed. With
            several there is one for each of several behaviours, between which a single mean would lie (Bishop 1994;
            behind a recurrent network it is BC-RNN-GMM, Mandlekar et al. 2021, arXiv 2108.03298).
    """

    LEAST_DEVIATION = 0.05  # with less, a few actions that were recorded twice would have all of the density
    BOUND = 1 - 1e-4  # from here on an action is at its bound, as far as rounding and a flat tanh let it

    is_distribution = True

    def __init__(self, space: gym.spaces.Box, d_model: int, modes: int):
        super().__init__(space, d_model)
        n = space.shape[0]
        self.sizes = (modes, modes * n)
        self.head = nn.Linear(d_model, sum(self.sizes))
        self.log_deviation = nn.Parameter(torch.full((modes, n), -1.0))

    @property
    def deviation(self) -> Tensor:
        """The Gaussians' standard deviations [modes, n], in units of half the space between the bounds."""
        return self.log_deviation.exp() + self.LEAST_DEVIATION

    def predict(self, features: Tensor) -> Tensor:
        return self.head(features)

    def error(self, prediction: Tensor, action: Tensor) -> Tensor:
        logits, means = self._gaussians(prediction)
        deviation = self.deviation
        done = self.encode(action)[..., None, :]
        density = -0.5 * ((done - means) / deviation).square() - deviation.log()  # the log, but for a constant
        beyond = torch.special.log_ndtr((done.sign() * means - 1) / deviation)
        log_p = torch.where(done.abs() < self.BOUND, density, beyond)
        return -torch.logsumexp(logits.log_softmax(-1) + log_p.sum(-1), -1) / means.shape[-1]

    def choose(self, prediction: Tensor, deterministic: bool) -> Tensor:
        """Choose the mean of the Gaussian with the largest weight, or draw from the mixture, within the bounds."""
        logits, means = self._gaussians(prediction)
        if deterministic:
            drawn = logits.argmax(-1)
        else:
            drawn = torch.distributions.Categorical(logits=logits).sample()
        action = means.gather(-2, drawn[..., None, None].expand_as(means[..., :1, :])).squeeze(-2)
        if not deterministic:
            action = action + self.deviation[drawn] * torch.randn_like(action)
        return super().choose(action.clamp(-1, 1), deterministic)

    def _gaussians(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Split a prediction into the weights' logits [..., modes] and the means [..., modes, n].

        They have the weights' type whatever the autocast: a logarithm has few digits in bfloat16.
        """
        logits, means = prediction.to(self.log_deviation.dtype).split(self.sizes, -1)
        return logits, means.unflatten(-1, (self.sizes[0], -1))


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


def make_action(space: gym.Space, d_model: int, modes: int = 0) -> Action:
    """Make the Action of a Box or Discrete space, a Box with a distribution of ``modes`` Gaussians; 0: with none.

    Raises:
        ValueError: The space is of another kind, or its bounds are not finite.
    """
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteAction(space, d_model)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        with np.errstate(over="ignore"):
            scaled = np.isfinite(space.high - space.low).all() and np.isfinite(space.high + space.low).all()
        if scaled:
            return MixtureAction(space, d_model, modes) if modes else BoxAction(space, d_model)
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


def describe_whole(space: gym.Space) -> dict[str, Any] | None:
    """Describe a Box of integers, as one row, as ``describe_space`` does, with its type; None for any other space."""
    if not isinstance(space, gym.spaces.Box) or np.dtype(space.dtype).kind not in "iu":
        return None
    row = gym.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype.type)
    return describe_space(row) | {"dtype": str(space.dtype)}


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
