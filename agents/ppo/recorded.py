"""Minibatches of PPO as one CUDA graph each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unroll.agents.common.distributed import world
from unroll.agents.common.recorded import Metrics, Recorder
from unroll.agents.ppo.gradients import clip_gradients, parameters_of
from unroll.policies.actor_critic import unvalidated

if TYPE_CHECKING:
    from unroll.agents.ppo.agent import RecurrentPPO
    from unroll.agents.ppo.sequences import Sequences


def can_be_recorded(agent: RecurrentPPO, sequences: Sequences) -> bool:
    """Whether nothing in a minibatch waits for the device, so that a graph can stand for all of them."""
    optimizer = agent.policy.optimizer
    fused = isinstance(optimizer, torch.optim.Adam) and all(group.get("fused") for group in optimizer.param_groups)
    alone = world.size == 1 and agent.anchor is None
    # An update that may end early is asked after every minibatch, and how many steps are learned from is counted.
    asked = agent.target_kl is not None or sequences.learned_from is not None
    # The noise of gSDE keeps a graph of autograd from one rollout to the next.
    return agent.cuda_graph and agent.device.type == "cuda" and fused and alone and not (asked or agent.use_sde)


class RecordedMinibatches:
    """Learns from minibatches as ``RecurrentPPO.train`` does. It records one of the first, and replays it.

    The graph draws from sequences that stay in their place. Weights move only where loss and gradient are finite, which
    the optimizer looks at on the device; that they were is asked once, after the update.
    """

    def __init__(self, agent: RecurrentPPO):
        self.agent = agent
        self.rate = torch.zeros((), device=agent.device)
        self.recorder: Recorder | None = None
        self.sizes: Any = None

    def begin(self, sequences: Sequences, settings: dict[str, Any]) -> None:
        """Take the sequences of a rollout, and the numbers in its loss."""
        agent = self.agent
        optimizer = agent.policy.optimizer
        rows = min(agent._sequences_per_minibatch, len(sequences))
        sizes = self._sizes(sequences, settings, rows)
        self.parts = parameters_of(agent.policy)
        if self.recorder is None or optimizer is not self.recorder.optimizer or sizes != self.sizes:
            self.sizes = sizes
            self.sequences = sequences.map(torch.clone)
            self.settings: dict[str, Any] = {
                name: None if value is None else torch.zeros_like(self.rate) for name, value in settings.items()
            }
            self.rows = torch.arange(rows, device=agent.device)
            self.recorder = Recorder(self._learn, agent.policy, optimizer, "minibatches")
        else:
            self.recorder.renew()
            self.sequences.map(Tensor.copy_, sequences)
        for name, value in settings.items():
            if value is not None:
                self.settings[name].fill_(value)
        self.rate.fill_(optimizer.param_groups[0]["lr"])

    def fits(self, rows: Tensor | slice) -> bool:
        """Whether the minibatch has the size of the others."""
        return isinstance(rows, slice) or len(rows) == len(self.rows)

    def __call__(self, rows: Tensor | slice) -> Metrics:
        """Learn from the sequences at these places."""
        assert self.recorder is not None
        if not isinstance(rows, slice):
            self.rows.copy_(rows)
        return self.recorder()

    def _learn(self) -> Metrics:
        agent = self.agent
        optimizer = agent.policy.optimizer
        # The last distribution holds a graph of autograd, whose nodes would remember the stream that they were made in.
        agent.policy.action_dist.distribution = None  # type: ignore[assignment]
        with unvalidated():
            loss, metrics = agent._loss(self.sequences.select(self.rows), **self.settings)
        optimizer.zero_grad()
        loss.backward()
        metrics["grad_norm"] = clip_gradients(self.parts, agent.max_grad_norm)
        finite = torch.isfinite(metrics["loss"] + metrics["grad_norm"])
        with reading(optimizer, self.rate, finite):
            optimizer.step()
        return metrics

    def _sizes(self, sequences: Sequences, settings: dict[str, Any], rows: int) -> Any:
        """Return the numbers that a graph has for good: sizes, and those of the optimizer but its learning rate."""
        shapes: list[Any] = []

        def note(value: Tensor) -> Tensor:
            shapes.append((value.shape, value.dtype))
            return value

        sequences.map(note)
        agent = self.agent
        learned = [parameter.requires_grad for parameter in agent.policy.parameters()]
        groups = [{**group, "params": None, "lr": None} for group in agent.policy.optimizer.param_groups]
        absent = [name for name, value in settings.items() if value is None]
        return shapes, rows, agent.max_grad_norm, learned, groups, absent


@contextlib.contextmanager
def reading(optimizer: torch.optim.Optimizer, rate: Tensor, finite: Tensor) -> Iterator[None]:
    """Have a fused Adam read its learning rate, and whether to move at all, from tensors on the device."""
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["capturable"] = True
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
        for group, (own_rate, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = own_rate
            group["capturable"] = capturable
