"""Updates as CUDA graphs.

An update launches some 200 kernels, most of which a GPU computes faster than a host launches them: on an H100 and at
Hopper's sizes it is busy for an eighth of the time. A graph is launched once, and no longer waits for the host.

An update can be recorded because nothing in it waits for the device, and because what differs from one to the next is
either copied to where the graph reads it (what was drawn, the learning rate) or read by the graph itself when it
begins (the state of the random generator). So a replayed update computes what an eager one does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unroll.errors import TrainingError, one_line

Metrics = dict[str, Tensor]  # numbers on the device, by name

# Updates before one is recorded, so that all is allocated, chosen and compiled that the first ones allocate, choose and
# compile. PyTorch asks for three.
WARM_UP = 3


class Recorder:
    """Makes updates by ``update``. It records one of the first, and replays it from then on.

    What cannot be recorded, because something in it waits for the device, goes on eagerly; the log says so once.

    Args:
        update: makes one update, from tensors that stay where they are, and returns its metrics. It is a method, of
            which a deep copy has its own.
        module: what learns.
        optimizer: what it moves the weights with.
        what: the name of such updates in the log.
    """

    def __init__(
        self,
        update: Callable[[], Metrics],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        what: str = "updates",
    ):
        self.update = update
        self.module = module
        self.optimizer = optimizer
        self.what = what
        self.made = 0
        self.possible = True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None  # of its own, as CUDA asks for, from the first update on
        self.places: list[tuple[Tensor, int]] = []  # what the graph reads and moves, and where in memory
        self.names: list[str] = []  # of the metrics
        self.metrics = torch.empty(0)  # where the graph leaves them

    def __getstate__(self) -> dict[str, Any]:
        """A copy records for itself."""
        return vars(self) | {"made": 0, "graph": None, "stream": None, "places": []}

    def __call__(self) -> Metrics:
        """Make one update."""
        with torch.cuda.device(next(self.module.parameters()).device):  # which need not be the current one
            return self._make()

    def renew(self) -> None:
        """Forget the recording if weights or moments are no longer those that it moves.

        So it is after another agent's were read, or the policy was given a module of the user's own.
        """
        now = self._read_and_moved()
        same = len(now) == len(self.places) and all(
            a is b and here == there for (a, here), (b, there) in zip(now, self.places, strict=True)
        )
        if self.graph is not None and not same:
            self.graph = None
            self.made = 0

    def _read_and_moved(self) -> list[tuple[Tensor, int]]:
        moments = [value for slots in self.optimizer.state.values() for value in slots.values()]
        tensors = [*self.module.parameters(), *self.module.buffers(), *moments]
        return [(tensor, tensor.data_ptr()) for tensor in tensors if isinstance(tensor, Tensor)]

    def _make(self) -> Metrics:
        if self.graph is None and self.possible and self.made >= WARM_UP:
            self._record()
        if self.graph is None:
            self.made += 1
            return self._aside() if self.possible else self.update()
        self.graph.replay()
        # the next replay writes where these are
        return dict(zip(self.names, self.metrics.clone().unbind(), strict=True))

    def _aside(self) -> Metrics:
        """Make an eager update in the stream in which one is recorded afterwards, as CUDA asks for."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            metrics = self.update()
        torch.cuda.current_stream().wait_stream(self.stream)
        return metrics

    def _record(self) -> None:
        """Record an update. Nothing is computed, and the agent is as it was."""
        graph = torch.cuda.CUDAGraph()
        try:
            # gradients belong to the graph from here on
            self.optimizer.zero_grad()
            with as_before_if_it_fails(), torch.cuda.graph(graph, stream=self.stream):
                metrics = self.update()
                packed = torch.stack([value.detach().float() for value in metrics.values()])
        except (RuntimeError, TrainingError) as error:
            self.possible = False
            reason = one_line(error, 200)
            logging.getLogger("unroll").warning(
                "%s are not recorded as a CUDA graph and run eagerly (%s)", self.what, reason
            )
        else:
            self.graph = graph
            self.places = self._read_and_moved()
            self.names = list(metrics)
            self.metrics = packed


@contextlib.contextmanager
def as_before_if_it_fails() -> Iterator[None]:
    """Put back what a recording that fails leaves as it was inside: the current stream, and the random generator."""
    stream = torch.cuda.current_stream()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(state)
        raise
