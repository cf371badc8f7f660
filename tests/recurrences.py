"""Random recurrences of minGRU and minLSTM, and a float64 loop over the papers' equations that they are held to."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from unroll.policies.backbones.scan import gated_scan

try:
    import numba
except ImportError:
    numba = None

needs_numba = pytest.mark.skipif(numba is None, reason="numba is not installed")
PARTS = {"mingru": 2, "minlstm": 3, "minlstm_unnormalized": 3}
GATES = pytest.mark.parametrize("gates", PARTS)
STATES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest value
GRADIENTS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-2}
SIZES = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 33, 64]), st.integers(1, 70))


def loop(projected, h0, reset, gates, candidate, turn=None):
    """h [B, T, D] and the last one, one step after the other, as sections 3.1 and 3.2 of arXiv 2410.01201 have them."""
    *gate, value = projected.clamp(-500, 500).chunk(PARTS[gates], -1)  # σ(-500) is no 0 in float64
    if candidate == "g":
        value = torch.where(value >= 0, value + 0.5, torch.sigmoid(value))
    elif candidate == "tanh":
        value = torch.tanh(value)
    if gates == "mingru":
        z = torch.sigmoid(gate[0])
        keep, take = 1 - z, z
    else:
        keep, take = torch.sigmoid(gate[0]), torch.sigmoid(gate[1])
        if gates == "minlstm":
            keep, take = keep / (keep + take), take / (keep + take)
    if turn is not None:
        sign, m = turn
        keep, take = sign * (m * keep + 1 - m), m * take
    h = torch.zeros_like(value[:, 0]) if h0 is None else h0
    states = []
    for t in range(projected.shape[1]):
        if reset is not None:
            h = torch.where(reset[:, t, None], 0, h)
        h = keep[:, t] * h + take[:, t] * value[:, t]
        states.append(h)
    return torch.stack(states, 1), h


class Case(NamedTuple):
    """A recurrence with the weights of its loss Σ h·dh + Σ last·dlast."""

    projected: Tensor
    h0: Tensor | None
    reset: Tensor | None
    dh: Tensor
    dlast: Tensor
    options: dict

    def differentiate(self, scan):
        """h, last, and the gradients of projected and of h0."""
        inputs = [x.detach().requires_grad_() for x in (self.projected, self.h0) if x is not None]
        h, last = scan(inputs[0], inputs[1] if len(inputs) > 1 else None, self.reset)
        grads = self.dh.to(h.dtype), self.dlast.to(last.dtype)
        return h.detach(), last.detach(), *torch.autograd.grad([h, last], inputs, grads)

    def found(self, backend):
        return self.differentiate(lambda *inputs: gated_scan(*inputs, **self.options, backend=backend))

    def exact(self):
        doubled = (None if x is None else x.double() for x in (self.projected, self.h0))
        return Case(*doubled, *self[2:]).differentiate(lambda *inputs: loop(*inputs, **self.options))


def lay_out(draw, *shape, scale=1.0):
    """Random values in memory that need not be contiguous."""
    layout = draw(st.sampled_from(["contiguous", "sliced", "time first", "channels first", "every second"]))
    if layout == "contiguous":
        return scale * torch.randn(shape)
    batch, time, width = shape
    if layout == "sliced":
        return scale * torch.randn(batch, time + 2, width + 3)[:, 1:-1, 2:-1]
    if layout == "time first":
        return scale * torch.randn(time, batch, width).transpose(0, 1)
    if layout == "channels first":
        return scale * torch.randn(batch, width, time).mT
    return scale * torch.randn(batch, time, 2 * width)[..., ::2]


@st.composite
def cases(draw, gates, dtype=torch.float32):
    batch, time, width = draw(st.integers(1, 5)), draw(SIZES), draw(SIZES)
    torch.manual_seed(draw(st.integers(0, 10_000)))
    candidate = draw(st.sampled_from(["g", "identity", "tanh"]))
    projected = lay_out(draw, batch, time, PARTS[gates] * width, scale=draw(st.sampled_from([1.0, 4.0])))
    if draw(st.booleans()):  # saturated gates
        projected[..., :-width].uniform_(-200, 200)
    h0 = draw(st.sampled_from([None, torch.randn(batch, width), torch.randn(width).expand(batch, width)]))
    never = torch.zeros(batch, time, dtype=torch.bool)
    first = never.clone()
    first[:, 0] = True
    random = (torch.rand(batch, 2 * time) < draw(st.sampled_from([0.05, 0.5])))[:, ::2]
    reset = draw(st.sampled_from([None, never, first, ~never, random, random | first]))
    dh = lay_out(draw, batch, time, width)
    if draw(st.booleans()):  # as the gradient of a mean comes
        dh = torch.ones(1, 1, 1).expand(batch, time, width)
    if h0 is not None and dtype == torch.float64:
        h0 = h0.double()
    turn = draw(st.sampled_from([None, torch.randint(2, (2, width)).float() * torch.tensor([[-2.0], [1.0]]) + 1]))
    options = dict(gates=gates, candidate=candidate, turn=turn)
    return Case(projected.to(dtype), h0, reset, dh.to(dtype), torch.randn(batch, width), options)


def assert_close(found, exact, dtype):
    """Within the share of the largest value that states and gradients may be off."""
    for i, (one, other) in enumerate(zip(found, exact, strict=True)):
        bound = (STATES if i < 2 else GRADIENTS)[dtype] * max(other.abs().max().item(), 1e-3)
        assert one.isfinite().all()
        assert (one.double() - other).abs().max() <= bound, ("h", "last", "projected", "h0")[i]


def simple(gates="mingru", batch=3, time=40, width=17):
    torch.manual_seed(0)
    projected, h0 = torch.randn(batch, time, PARTS[gates] * width), torch.randn(batch, width)
    reset, dh, dlast = torch.rand(batch, time) < 0.1, torch.randn(batch, time, width), torch.randn(batch, width)
    return Case(projected, h0, reset, dh, dlast, dict(gates=gates, candidate="g"))
