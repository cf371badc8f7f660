"""The fused recurrences of minGRU and minLSTM against a float64 loop over the papers' equations, in every body."""

import multiprocessing
import threading
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policies.backbones.scan import gated_scan

try:
    import numba
except ImportError:
    numba = None

needs_numba = pytest.mark.skipif(numba is None, reason="numba is not installed")
BODIES = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_numba), "auto", "reference"])
PARTS = {"mingru": 2, "minlstm": 3, "minlstm_unnormalized": 3}
GATES = pytest.mark.parametrize("gates", PARTS)
STATES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest value
GRADIENTS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-2}
SIZES = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 33, 64]), st.integers(1, 70))


def loop(projected, h0, reset, gates, candidate):
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
        projected[..., :-width].uniform_(-60, 60)
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
    return Case(projected.to(dtype), h0, reset, dh, torch.randn(batch, width), dict(gates=gates, candidate=candidate))


def assert_close(found, exact, dtype):
    """Within the share of the largest value that states and gradients may be off."""
    for i, (one, other) in enumerate(zip(found, exact, strict=True)):
        bound = (STATES if i < 2 else GRADIENTS)[dtype] * max(other.abs().max().item(), 1e-3)
        assert one.isfinite().all()
        assert (one.double() - other).abs().max() <= bound, ("h", "last", "projected", "h0")[i]


@GATES
@BODIES
@given(data=st.data())
def test_a_scan_is_the_papers_equations_in_values_and_gradients(gates, backend, data):
    case = data.draw(cases(gates))
    assert_close(case.found(backend), case.exact(), torch.float32)


@GATES
@BODIES
@given(data=st.data())
def test_bfloat16_is_computed_in_float32_and_carried_on_in_it(gates, backend, data):
    case = data.draw(cases(gates, torch.bfloat16))
    h, last, dprojected, *dh0 = case.found(backend)
    assert (h.dtype, last.dtype, dprojected.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    exact = case.exact()
    assert_close((h, last, dprojected, *dh0), exact, torch.bfloat16)
    assert_close((last,), exact[1:2], torch.float32)


@GATES
@given(data=st.data())
def test_float64_is_computed_in_float64(gates, data):
    case = data.draw(cases(gates, torch.float64))
    found = case.found("auto")
    assert all(x.dtype == torch.float64 for x in found[:3])
    assert_close(found, case.exact(), torch.float64)


@pytest.mark.parametrize("extreme", [60.0, 88.0, 1e4, 3e38])
@GATES
@BODIES
def test_nothing_overflows_where_gates_and_candidates_are_saturated(gates, backend, extreme):
    """Also from a large state before; the candidate is bounded, so that every state is."""
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (2, 40, PARTS[gates] * 17)) * 2.0 - 1
    options = dict(gates=gates, candidate="tanh")
    h0, reset = 1e6 * torch.randn(2, 17), torch.rand(2, 40) < 0.1
    case = Case(extreme * signs, h0, reset, torch.randn(2, 40, 17), torch.randn(2, 17), options)
    found = case.found(backend)
    assert all(x.isfinite().all() for x in found)
    assert_close(found[:2], case.exact()[:2], torch.float32)


@GATES
@BODIES
def test_a_nan_before_a_reset_reaches_no_value_and_no_gradient_after_it(gates, backend):
    torch.manual_seed(0)
    width, cut = 17, 6
    projected, h0 = torch.randn(2, 20, PARTS[gates] * width), torch.full((2, width), torch.nan)
    projected[:, :cut, -width:] = torch.nan
    reset = torch.arange(20).expand(2, 20) == cut
    case = Case(
        projected, h0, reset, torch.randn(2, 20, width), torch.randn(2, width), dict(gates=gates, candidate="g")
    )
    h, last, dprojected, _ = case.found(backend)
    after = Case(projected[:, cut:], None, None, case.dh[:, cut:], case.dlast, case.options)
    assert h[:, :cut].isnan().all()
    assert_close((h[:, cut:], last, dprojected[:, cut:]), after.exact(), torch.float32)


@GATES
@BODIES
def test_a_nan_in_the_loss_of_an_episode_reaches_no_gradient_of_the_one_before(gates, backend):
    torch.manual_seed(0)
    width, cut = 17, 6
    projected, dh = torch.randn(2, 20, PARTS[gates] * width), torch.randn(2, 20, width)
    h0, dlast = torch.randn(2, width), torch.full((2, width), torch.nan)
    dh[:, cut:] = torch.nan
    reset, options = torch.arange(20).expand(2, 20) == cut, dict(gates=gates, candidate="g")
    _, _, dprojected, dh0 = Case(projected, h0, reset, dh, dlast, options).found(backend)
    before = Case(projected[:, :cut], h0, None, dh[:, :cut], torch.zeros(2, width), options).exact()
    assert dprojected[:, cut:].isnan().any()
    assert_close((dprojected[:, :cut], dh0), before[2:], torch.float32)


def simple(gates="mingru", batch=3, time=40, width=17):
    torch.manual_seed(0)
    projected, h0 = torch.randn(batch, time, PARTS[gates] * width), torch.randn(batch, width)
    reset, dh, dlast = torch.rand(batch, time) < 0.1, torch.randn(batch, time, width), torch.randn(batch, width)
    return Case(projected, h0, reset, dh, dlast, dict(gates=gates, candidate="g"))


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_numba
@GATES
def test_one_thread_and_two_compute_the_same(gates):
    case, threads = simple(gates), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(case.found("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert_equal(*results)


@needs_numba
def test_a_kernel_leaves_the_number_of_threads_as_it_was():
    """In a new process: what numba does when it starts its threads, it does once."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=count_and_send, args=(sender,))
    process.start()
    sender.close()
    try:
        assert receiver.recv() == (1, 1)
    finally:
        process.join()
        receiver.close()


@needs_numba
def test_two_python_threads_may_call_at_once():
    cases, results = [simple(gates, batch=8, time=300) for gates in ("mingru", "minlstm")], {}

    def work(i):
        results[i] = [cases[i % 2].found("cpu") for _ in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(4):
        expected = cases[i % 2].found("cpu")
        assert len(results[i]) == 20
        for found in results[i]:
            assert_equal(found, expected)


def count_and_send(sender):
    torch.set_num_threads(1)
    before = torch.get_num_threads()
    simple().found("cpu")
    sender.send((before, torch.get_num_threads()))


def compute_and_send(case, sender):
    sender.send([x.tolist() for x in case.found("auto")])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 warns of what is tested here
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_process_that_is_forked_after_a_kernel_ran_computes_too():
    case = simple()
    found = case.found("auto")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=compute_and_send, args=(case, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child neither answers nor ends"
        received = [torch.tensor(x) for x in receiver.recv()]  # EOFError: the child was killed
    finally:
        process.join(10)
        process.kill()
        receiver.close()
    assert process.exitcode == 0
    for one, other in zip(received, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_numba
@GATES
@pytest.mark.parametrize("resets", [False, True])
def test_torch_compile_goes_through_without_a_break(gates, resets):
    case = simple(gates)
    case = case if resets else case._replace(reset=None)
    compiled = torch.compile(gated_scan, fullgraph=True, backend="aot_eager")
    assert_equal(case.differentiate(lambda *inputs: compiled(*inputs, **case.options)), case.found("auto"))


@needs_numba
@GATES
def test_the_operators_keep_the_rules_of_torch_library(gates):
    case = simple(gates)
    h, last = gated_scan(case.projected, case.h0, case.reset, **case.options)
    inputs = case.projected.requires_grad_(), case.h0.requires_grad_()
    torch.library.opcheck(torch.ops.unroll.gated_scan, (*inputs, case.reset, gates, "g"))
    torch.library.opcheck(torch.ops.unroll.gated_scan, (*inputs, None, gates, "g"))
    saved = (case.projected.detach(), case.h0.detach(), case.reset, h)
    torch.library.opcheck(torch.ops.unroll.gated_scan_backward, (case.dh, torch.zeros_like(last), *saved, gates, "g"))


@needs_numba
@pytest.mark.parametrize("reverse", [False, True])
def test_the_general_operators_keep_the_rules_of_torch_library(reverse):
    torch.manual_seed(0)
    a, b, h0 = torch.rand(2, 9, 5), torch.randn(2, 9, 5), torch.randn(2, 5)
    reset, dh = torch.rand(2, 9) < 0.2, torch.randn(2, 9, 5)
    h = torch.ops.unroll.linear_scan(a, b, h0, reset, reverse)
    torch.library.opcheck(torch.ops.unroll.linear_scan_backward, (dh, a, h0, reset, h, reverse))
    inputs = [x.requires_grad_() for x in (a, b, h0)]
    torch.library.opcheck(torch.ops.unroll.linear_scan, (*inputs, reset, reverse))


def test_an_unknown_backend_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match="choose one of auto, reference, cpu, cuda"):
        gated_scan(torch.rand(1, 1, 2), backend="gpu")
