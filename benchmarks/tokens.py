"""What the benchmarks over symbols share: a model of tokens around a backbone, and the loop that trains it.

Tokens [B, T] → embedding → backbone → linear head → logits [B, T, symbols]. Nothing here knows which backbone it has.
The learning rate warms up linearly and then falls along half a cosine to a tenth, over the updates or over the seconds
that are given: matched time means that every backbone anneals fully within the same time. On the CPU that is the
process's own time, per thread, so that whatever else the machine does costs no backbone an update.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from unroll.agents.common.logs import RunLogger
from unroll.agents.common.optim import make_optimizer
from unroll.policies.backbones import Backbone, State

IGNORED = -100  # a target that is not asked for
Batch = tuple[Tensor, Tensor]  # tokens and targets, both int64 [B, T]


class TokenModel(nn.Module):
    """embedding → backbone → linear head over ``symbols``."""

    def __init__(self, backbone: Backbone, symbols: int, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(symbols, backbone.d_model)
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = nn.Linear(backbone.d_model, symbols)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens [B, T] → logits [B, T, symbols] and the state after the last one."""
        y, state = self.backbone(self.dropout(self.embedding(tokens)), state)
        return self.head(y), state

    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(frozen=True)
class Training:
    """How to train, the same for every backbone. It ends after ``updates`` or ``seconds``, whichever is first."""

    updates: int | None = None
    seconds: float | None = None
    optimizer: Literal["adamw", "lamb"] = "adamw"
    lr: float = 1e-3
    warmup: int = 100
    clip: float = 1.0
    weight_decay: float = 0.01
    evaluate_every: int = 100

    def spent(self, update: int, seconds: float) -> float:
        """The share of the budget that is used up."""
        return max(update / self.updates if self.updates else 0.0, seconds / self.seconds if self.seconds else 0.0)

    def rate(self, update: int, spent: float) -> float:
        """The learning rate of an update, counted from 0."""
        cosine = 0.55 + 0.45 * math.cos(math.pi * min(spent, 1.0))
        return self.lr * min((update + 1) / (self.warmup + 1), cosine)


@dataclass(frozen=True)
class Result:
    """What training came to: the updates made, the seconds they took (evaluations apart), every evaluation in order."""

    updates: int
    seconds: float
    history: list[dict[str, float]]

    @property
    def last(self) -> dict[str, float]:
        return self.history[-1]


def fit(
    model: TokenModel,
    draw: Callable[[], Batch],
    evaluate: Callable[[], dict[str, float]],
    training: Training,
    folder: Path,
    done: Callable[[dict[str, float]], bool] = lambda metrics: False,
    title: str = "",
) -> Result:
    """Train ``model`` on ``draw()`` and log to ``folder``; stop early when ``done`` accepts an evaluation.

    ``train_loss`` is the mean over the last ``evaluate_every`` updates.
    """
    clock = time.perf_counter if next(model.parameters()).is_cuda else cpu_seconds
    optimizer = make_optimizer(training.optimizer, model.parameters(), training.lr, training.weight_decay)
    logger = RunLogger(folder)
    history: list[dict[str, float]] = []
    losses: deque[float] = deque(maxlen=training.evaluate_every)
    update, seconds, spent = 0, 0.0, 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=1.0, shown="")
        while spent < 1:
            began = clock()
            optimizer.param_groups[0]["lr"] = training.rate(update, spent)
            losses.append(descend(model, optimizer, draw(), training.clip))
            update += 1
            seconds += clock() - began
            spent = training.spent(update, seconds)
            progress.update(bar, completed=spent)
            if update % training.evaluate_every == 0 or spent >= 1:
                history.append({"update": update, "seconds": seconds, "train_loss": statistics.mean(losses)})
                history[-1] |= score(model, evaluate)
                for key, value in history[-1].items():
                    logger.record(f"benchmark/{key}", value)
                logger.dump(update)
                progress.update(bar, shown=", ".join(f"{key} {value:.4g}" for key, value in history[-1].items()))
                if done(history[-1]):
                    break
    logger.close()
    return Result(update, seconds, history)


def cpu_seconds() -> float:
    """The processor time of this process, divided by its threads."""
    return time.process_time() / torch.get_num_threads()


def descend(model: TokenModel, optimizer: torch.optim.Optimizer, batch: Batch, clip: float) -> float:
    """One update; its loss."""
    model.train()
    device = next(model.parameters()).device
    tokens, targets = (x.to(device) for x in batch)
    logits, _ = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()  # and the device has finished: the clock is right


@torch.inference_mode()
def score(model: TokenModel, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """``evaluate()`` without gradients and without dropout."""
    model.eval()
    return evaluate()


def answer(
    model: TokenModel,
    draw: Callable[[], Batch],
    fresh: list[Batch],
    training: Training,
    goal: float,
    folder: Path,
    title: str,
) -> dict[str, Any]:
    """Train ``model`` until its accuracy on ``fresh`` is ``goal``: the accuracy in percent, and what it took."""
    result = fit(
        model,
        draw,
        lambda: {"accuracy": accuracy(model, fresh)},
        training,
        folder,
        done=lambda metrics: metrics["accuracy"] >= goal,
        title=title,
    )
    return {
        "accuracy": 100 * result.last["accuracy"],
        "parameters": model.size(),
        "updates": result.updates,
        "seconds": result.seconds,
        "history": result.history,
    }


def accuracy(model: TokenModel, batches: list[Batch]) -> float:
    """The share of right answers among the targets that are asked for."""
    device = next(model.parameters()).device
    right = asked = 0
    for tokens, targets in batches:
        guess = model(tokens.to(device))[0].argmax(-1).cpu()
        right += int((guess == targets).sum())
        asked += int((targets != IGNORED).sum())
    return right / asked
