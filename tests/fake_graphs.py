"""CUDA graphs without CUDA."""

import contextlib

import pytest
import torch

from unroll.agents.common.recorded import Recorder


class FakeGraph:
    """What ``torch.cuda.graph`` fills: recording computes nothing, and a replay computes an update."""

    recorder: Recorder

    def replay(self):
        for place, value in zip(self.recorder.metrics, self.recorder.update().values(), strict=True):
            place.copy_(value)


class FakeGenerator:
    """The CPU's generator in the place of the device's."""

    def clone_state(self):
        return torch.get_rng_state()

    def graphsafe_set_state(self, state):
        torch.set_rng_state(state)


@pytest.fixture(name="record")
def record_fixture(monkeypatch):
    """Have CUDA's graphs be fakes: call the fixture with a function that finds the recorder."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA GPU records graphs of its own")

    def prepare(find):
        @contextlib.contextmanager
        def graph(made, stream):
            made.recorder = find()
            policy, optimizer = made.recorder.module, made.recorder.optimizer
            weights = {name: value.clone() for name, value in policy.state_dict().items()}
            moments = [{key: value.clone() for key, value in slots.items()} for slots in optimizer.state.values()]
            random = torch.get_rng_state()
            yield
            torch.set_rng_state(random)
            policy.load_state_dict(weights)
            for slots, before in zip(optimizer.state.values(), moments, strict=True):
                for key, value in before.items():
                    slots[key].copy_(value)

        class Stream:
            def wait_stream(self, other):
                pass

        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "default_generators", (FakeGenerator(),))

    return prepare
