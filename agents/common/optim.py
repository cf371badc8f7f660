"""Optimizers: AdamW in its fused kernel, and LAMB with a minimum trust."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

MOST_NORM = 10.0  # of a weight tensor, beyond which a step grows no further with it


class LAMB(torch.optim.Optimizer):
    """Adam whose step in each tensor is as long as the tensor itself, times the learning rate.

    It is LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2) as SHA-RNN is trained with it (Merity 2019, arXiv
    1911.11423): no bias correction, and a trust ratio of at least ``min_trust``.

    step = m/(√v + eps) + weight_decay·w;  trust = max(min(‖w‖, 10)/‖step‖, min_trust), 1 where a norm is 0;
    w ← w - lr·trust·step.

    Raises:
        ValueError: a hyperparameter that makes no sense.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        min_trust: float = 0.25,
    ):
        if not (lr >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1 and eps > 0 and weight_decay >= 0):
            raise ValueError(f"LAMB: lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay} make no sense")
        if not 0 <= min_trust <= 1:
            raise ValueError(f"LAMB: min_trust is from 0 to 1, not {min_trust}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, min_trust=min_trust))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make one update; return the loss of ``closure`` if there is one. Nothing waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)

        # Running means of the gradient and of its square, without Adam's bias correction.
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)

        # Adam's step, with the weight decay inside, so that the trust ratio scales both.
        step = mean / square.sqrt().add_(group["eps"])
        step.add_(weight, alpha=group["weight_decay"])

        # The trust ratio: as far as the tensor is long, but never less than min_trust. A tensor of zeros has no
        # length to go by, and takes the step as it is.
        weight_norm = weight.norm().clamp_max(MOST_NORM)
        step_norm = step.norm()
        trust = (weight_norm / step_norm).clamp_min(group["min_trust"])
        trust = torch.where((weight_norm > 0) & (step_norm > 0), trust, 1.0)
        rate = group["lr"]
        if isinstance(rate, Tensor):  # on CUDA, where a number could not be read without waiting for it
            weight.sub_(step.mul_(trust * rate))
        else:
            weight.sub_(step.mul_(trust), alpha=rate)


def make_optimizer(
    name: Literal["adamw", "lamb"], params: Iterable[Tensor], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW in its fused kernel, or LAMB.

    On CUDA the learning rate is a tensor on the device, so that a CUDA graph of a step reads what it is by then.
    """
    params = list(params)
    on_cuda = params[0].is_cuda
    rate = torch.tensor(lr, device=params[0].device) if on_cuda else lr
    if name == "lamb":
        return LAMB(params, lr=rate, weight_decay=weight_decay)
    return torch.optim.AdamW(params, lr=rate, weight_decay=weight_decay, fused=True, capturable=on_cuda)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
