"""An update of a decision agent as one CUDA graph.

An update launches some 200 kernels, most of which a GPU computes faster than a host launches them: on an H100 and at
Hopper's sizes it is busy for an eighth of the time. A graph is launched once, and no longer waits for the host.

An update can be recorded because nothing in it waits for the device, and because what differs from one to the next is
either copied to where the graph reads it (what was drawn, the learning rate) or read by the graph itself when it
begins (the state of the random generator). So a replayed update computes what an eager one does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from unroll.errors import TrainingError, one_line

if TYPE_CHECKING:
    from unroll.agents.decision.agent import DecisionAgent, Metrics
    from unroll.envs.datasets.sampling import Batch

# Updates before one is recorded, so that all is allocated, chosen and compiled that the first ones allocate, choose and
# compile. PyTorch asks for three.
WARM_UP = 3


class RecordedUpdate:
    """Makes updates as ``agent.update`` does. It records one of the first, and replays it from then on.

    What cannot be recorded, because something in it waits for the device, goes on eagerly; the log says so once.
    """

    def __init__(self, agent: DecisionAgent):
        self.agent = agent
        self.made = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.drawn: Batch = {}  # where the graph reads what was drawn
        self.metrics: Metrics = {}  # where it leaves the metrics
        self.possible = True

    def __call__(self) -> Metrics:
        """Make one update; see ``DecisionAgent.update``."""
        agent = self.agent
        drawn = agent.begin_update()
        if self.possible and self.graph is None and self.made >= WARM_UP:
            self._record(drawn)
        if self.graph is None:
            self.made += 1
            return self._aside(drawn) if self.possible else agent.update(drawn)

        for key, value in drawn.items():
            self.drawn[key].copy_(value)
        self.graph.replay()
        agent.num_timesteps += 1
        # the next replay writes where these are
        return {name: value.clone() for name, value in self.metrics.items()}

    def _aside(self, drawn: Batch) -> Metrics:
        """Make an eager update in a stream of its own, as what is recorded afterwards must have been."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            metrics = self.agent.update(drawn)
        torch.cuda.current_stream().wait_stream(aside)
        return metrics

    def _record(self, drawn: Batch) -> None:
        """Record an update. Nothing is computed, and the agent is as it was."""
        agent = self.agent
        before = agent.num_timesteps
        static = {key: value.clone() for key, value in drawn.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            # gradients belong to the graph from here on
            agent.optimizer.zero_grad()
            with torch.cuda.graph(graph):
                metrics = agent.update(static)
        except (RuntimeError, TrainingError) as error:
            self.possible = False
            reason = one_line(error, 200)
            logging.getLogger("unroll").warning("updates are not recorded as a CUDA graph and run eagerly (%s)", reason)
        else:
            self.graph = graph
            self.drawn = static
            self.metrics = metrics
        finally:
            agent.num_timesteps = before
