"""An update of a decision agent as one CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unroll.agents.common.recorded import Metrics, Recorder

if TYPE_CHECKING:
    from unroll.agents.decision.agent import DecisionAgent
    from unroll.envs.datasets.sampling import Batch


class RecordedUpdate:
    """Makes updates as ``agent.update`` does. It records one of the first, and replays it from then on."""

    def __init__(self, agent: DecisionAgent):
        self.agent = agent
        self.drawn: Batch = {}  # where the graph reads what was drawn
        self.recorder = Recorder(self._update, agent.policy, agent.optimizer)

    def _update(self) -> Metrics:
        return self.agent.update(self.drawn)

    def __call__(self) -> Metrics:
        """Make one update; see ``DecisionAgent.update``."""
        agent = self.agent
        drawn = agent.begin_update()
        if not self.recorder.possible:
            self.drawn = drawn
        elif self.recorder.graph is None:
            self.drawn = {key: value.clone() for key, value in drawn.items()}
        else:
            for key, value in drawn.items():
                self.drawn[key].copy_(value)

        # A replay does not count, and what is recorded counts twice.
        before = agent.num_timesteps
        metrics = self.recorder()
        agent.num_timesteps = before + 1
        return metrics
