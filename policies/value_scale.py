"""The unit in which a value network says values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ValueScale(nn.Module):
    """A map from what a value network says to values: σ · x, where σ is the root mean square of the returns.

    A network that said returns of hundreds itself would learn for as long as Adam needs to make its weights as large.
    As σ moves, the last layer is moved against it, so that no value changes, as in PopArt (van Hasselt et al. 2016,
    arXiv 1602.07714), which also takes the mean out.
    """

    SHARE = 0.1  # of the newest returns in the mean square, at least
    LEAST = 1e-12  # mean square

    square: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("square", torch.ones(()))  # σ²
        self.register_buffer("count", torch.zeros(()))  # of updates

    def forward(self, x: Tensor) -> Tensor:
        """Compute values from what the last layer gives."""
        return self.square.sqrt() * x

    @torch.no_grad()
    def update(self, returns: Tensor, values: Tensor, last: nn.Linear) -> Tensor:
        """Take new returns [...] into σ, with the values that were said of them, and move the last layer.

        σ is no smaller than the values' own errors: what the network has to unlearn is never many units large. At the
        first update the layer stays, since what an untrained network says is worth nothing. Return the factor by which
        all values are larger than before: 1 but for the first update.
        """
        new = torch.maximum(returns.square().mean(), (returns - values).square().mean())
        first = self.count == 0
        square = torch.where(first, returns.square().mean(), self.square.lerp(new, self._share()))
        square = square.clamp(min=self.LEAST)
        change = torch.where(first, 1.0, (self.square / square).sqrt())
        last.weight.mul_(change)
        last.bias.mul_(change)
        larger = torch.where(first, (square / self.square).sqrt(), 1.0)
        self.square.copy_(square)
        self.count += 1
        return larger

    def _share(self) -> Tensor:
        return (self.count + 1).reciprocal().clamp(min=self.SHARE)

    @classmethod
    def of_before(cls) -> dict[str, Tensor]:
        """Return the state for a network that was trained to say values in the units of the rewards."""
        return {"square": torch.ones(()), "count": torch.ones(())}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in self.of_before().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)
