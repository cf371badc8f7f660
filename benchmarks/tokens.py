"""A model of tokens around a backbone, and the loop that trains it, for the benchmarks over symbols.

Tokens [B, T] → embedding → backbone → linear head → logits [B, T, symbols]. Nothing here knows which backbone it has.

The learning rate warms up linearly and then falls along half a cosine to a tenth, over the given updates or seconds.
So with matched time every backbone anneals fully within the same time. On the CPU that is the processor time of the
process, divided by its threads: whatever else the machine does costs no backbone an update.
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
from unroll.agents.common.optim import make_optimizer, set_learning_rate
from unroll.agents.common.recorded import Metrics, Recorder
from unroll.policies.backbones import Backbone, State

IGNORED = -100  # the target at a position that asks for nothing
Batch = tuple[Tensor, Tensor]  # tokens and targets, both int64 [B, T]


class TokenModel(nn.Module):
    """A model of tokens: embedding, backbone, and a linear head over ``symbols``."""

    def __init__(self, backbone: Backbone, symbols: int, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(symbols, backbone.d_model)
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = nn.Linear(backbone.d_model, symbols)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map tokens [B, T] to logits [B, T, symbols] and the state after the last one."""
        y, state = self.backbone(self.dropout(self.embedding(tokens)), state)
        return self.head(y), state

    def size(self) -> int:
        """Count the parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(frozen=True)
class Training:
    """A way to train, the same for every backbone. It ends after ``updates`` or ``seconds``, whichever is first."""

    updates: int | None = None
    seconds: float | None = None
    optimizer: Literal["adamw", "lamb"] = "adamw"
    lr: float = 1e-3
    warmup: int = 100
    clip: float = 1.0
    weight_decay: float = 0.01
    evaluate_every: int = 100

    def spent(self, update: int, seconds: float) -> float:
        """Return the share of the budget that is used up after so many updates and seconds."""
        share = 0.0
        if self.updates:
            share = max(share, update / self.updates)
        if self.seconds:
            share = max(share, seconds / self.seconds)
        return share

    def rate(self, update: int, spent: float) -> float:
        """Return the learning rate of an update, counted from 0."""
        warming = (update + 1) / (self.warmup + 1)
        falling = 0.55 + 0.45 * math.cos(math.pi * min(spent, 1.0))
        return self.lr * min(warming, falling)


@dataclass(frozen=True)
class Result:
    """An outcome of training: the updates, their seconds (evaluations apart), and every evaluation in order."""

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

    An evaluation has the metrics of ``evaluate()`` and ``train_loss``, the mean over the last ``evaluate_every``
    updates.
    """
    clock = cpu_seconds
    if next(model.parameters()).is_cuda:
        clock = time.perf_counter

    # The optimizer of the agents, whose learning rate is set at each update.
    optimizer = make_optimizer(training.optimizer, model.parameters(), training.lr, training.weight_decay)
    descent = Descent(model, optimizer, training.clip)
    logger = RunLogger(folder)
    history: list[dict[str, float]] = []
    losses: deque[float] = deque(maxlen=training.evaluate_every)
    update = 0
    seconds = 0.0
    spent = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=1.0, shown="")
        while spent < 1:
            # An update, and nothing but it, is on the clock.
            began = clock()
            set_learning_rate(optimizer, training.rate(update, spent))
            losses.append(descent(draw()))
            update += 1
            seconds += clock() - began
            spent = training.spent(update, seconds)
            progress.update(bar, completed=spent)
            if update % training.evaluate_every and spent < 1:
                continue

            # Evaluate every so many updates, and at the end.
            metrics = {"update": update, "seconds": seconds, "train_loss": statistics.mean(losses)}
            metrics |= score(model, evaluate)
            history.append(metrics)
            for key, value in metrics.items():
                logger.record(f"benchmark/{key}", value)
            logger.dump(update)
            progress.update(bar, shown=", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
            if done(metrics):
                break
    logger.close()
    return Result(update, seconds, history)


def cpu_seconds() -> float:
    """Return the processor time of this process, divided by its threads."""
    return time.process_time() / torch.get_num_threads()


class Descent:
    """Updates of a model by batches of one size, on CUDA as one graph."""

    def __init__(self, model: TokenModel, optimizer: torch.optim.Optimizer, clip: float):
        self.model = model
        self.optimizer = optimizer
        self.clip = clip
        self.device = next(model.parameters()).device
        self.batch: Batch | None = None  # where the graph reads it
        self.recorder = Recorder(self._update, model, optimizer) if self.device.type == "cuda" else None

    def __call__(self, batch: Batch) -> float:
        """Make one update; return its loss, for which the device is waited for, so that a clock is right."""
        self.model.train()
        if self.recorder is None or self.batch is None:
            self.batch = tuple(x.to(self.device) for x in batch)
        else:
            for here, new in zip(self.batch, batch, strict=True):
                here.copy_(new)
        metrics = self._update() if self.recorder is None else self.recorder()
        return metrics["loss"].item()

    def _update(self) -> Metrics:
        assert self.batch is not None
        tokens, targets = self.batch
        logits, _ = self.model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return {"loss": loss.detach()}


@torch.inference_mode()
def score(model: TokenModel, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return ``evaluate()`` without gradients and without dropout."""
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
    """Train ``model`` until its accuracy on ``fresh`` is ``goal``; return the accuracy in percent, and what it took."""
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
    """Return the share of right answers among the targets that are asked for."""
    device = next(model.parameters()).device
    # A guess never equals IGNORED, so that only targets that are asked for can be right.
    right = 0
    asked = 0
    for tokens, targets in batches:
        guess = model(tokens.to(device))[0].argmax(-1).cpu()
        right += int((guess == targets).sum())
        asked += int((targets != IGNORED).sum())
    return right / asked
