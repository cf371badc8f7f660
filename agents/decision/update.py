"""One gradient update: the loss, its gradient and the optimizer's step; eager or compiled, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unroll.agents.common.distributed import n_ranks, parallel, share
from unroll.agents.common.guards import is_out_of_memory
from unroll.errors import TrainingError as TrainingError
from unroll.policies.decision import DecisionPolicy

Precision = Literal["float32", "bfloat16"]
Compile = Literal["none", "default", "reduce-overhead"]


def check_device(device: str) -> None:
    """Raise TrainingError for a GPU that is not there, where Stable-Baselines3 would quietly take the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: PyTorch finds no CUDA device here; use auto or cpu")


class Loss(nn.Module):
    """A policy's loss as a module, which DistributedDataParallel takes."""

    def __init__(self, policy: DecisionPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.policy.loss(batch)


class Update:
    """Moves a policy's weights once per call. Nothing waits for the device: what a call returns is still there.

    Args:
        precision: ``bfloat16`` makes the matrix products of the loss in bfloat16, by autocast. Weights, optimizer,
            embedding and recurrences stay in float32.
        compile: the mode of ``torch.compile`` for the loss and its gradient, or ``none``. ``reduce-overhead`` replays a
            CUDA graph on CUDA and is ``default`` on a CPU. Shapes are fixed, so it is compiled once.

    Raises:
        ValueError: another precision or mode.
    """

    def __init__(
        self,
        policy: DecisionPolicy,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        precision: Precision = "float32",
        compile: Compile = "none",
    ):
        for name, value, known in (("precision", precision, Precision), ("compile", compile, Compile)):
            if value not in get_args(known):
                raise ValueError(f"{name} is one of {', '.join(get_args(known))}, not {value!r}")
        self.policy, self.optimizer, self.max_grad_norm = policy, optimizer, max_grad_norm
        self.precision, self.compile = precision, compile
        if compile != "none" and n_ranks() > 1:
            raise TrainingError(f"compile {compile} is for one process; use none with {n_ranks()}")
        self.loss: Callable[..., Tensor] = policy.loss
        if compile != "none":
            self.loss = torch.compile(policy.loss, mode=compile, dynamic=False)
        elif n_ranks() > 1:
            self.loss = parallel(Loss(policy))
        self._to_compile = compile != "none"

    def __call__(
        self,
        batch: dict[str, Tensor],
        seed: int,
        learning_rate: float,
        check: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> dict[str, Tensor]:
        """Loss and gradient norm of ``batch``; ``seed`` is that of dropout. ``check`` is shown both before the weights
        move, and may raise.

        Raises:
            TrainingError: what cannot be compiled here.
        """
        self.policy.train()
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            loss = self._gradient(batch)
        except Exception as error:
            if not self._to_compile or is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]  # on a CPU: there is no C++ compiler
            raise TrainingError(f"compile {self.compile} does not work here, use none ({reason})") from error
        self._to_compile = False
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        metrics = {"train/loss": loss, "train/grad_norm": norm}
        if check is not None:
            check(metrics)
        self.optimizer.step()
        return metrics

    def _gradient(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss; its gradient is in the parameters then."""
        device = batch["mask"].device.type
        self.optimizer.zero_grad()  # before the loss: a CUDA graph's next replay writes where these gradients are
        if device == "cuda" and self.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.loss(batch)
        loss.backward()
        return loss.detach().clone()  # out of the graph's memory too


def own_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows that this process learns from; the mean loss over processes is that of the whole batch."""
    if n_ranks() == 1:
        return batch
    steps, rows = batch["mask"].sum() / n_ranks(), share(len(batch["mask"]))
    return {key: value[rows] for key, value in batch.items()} | {"steps": steps}
