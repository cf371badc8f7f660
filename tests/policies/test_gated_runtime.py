"""The kernels in the world: threads, processes, ``torch.compile``, and the rules of ``torch.library``."""

import multiprocessing
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from memory_tasks import Noise, make_ppo, vector
from recurrences import GATES, needs_numba, numba, simple
from unroll.policies.backbones import make_backbone
from unroll.policies.backbones.conv import CausalConv
from unroll.policies.backbones.kernels import load
from unroll.policies.backbones.scan import gated_scan, linear_scan
from unroll.policies.backbones.selective import selective_scan
from unroll.policies.decision import DecisionPolicy


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


@needs_numba
@GATES
def test_the_defaults_of_pytorch_change_nothing(gates):
    case = simple(gates)
    wanted = case.found("cpu")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = case.found("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(found, wanted)


@needs_numba
def test_a_kernel_leaves_numbas_number_of_threads_as_it_was():
    before = numba.get_num_threads()
    try:
        for count in {1, numba.config.NUMBA_NUM_THREADS}:
            numba.set_num_threads(count)
            simple().found("cpu")
            assert numba.get_num_threads() == count
    finally:
        numba.set_num_threads(before)


@needs_numba
@GATES
def test_the_candidate_of_an_infinite_input_is_that_of_the_reference(gates):
    projected = torch.zeros(2, 1, simple(gates).projected.shape[2])
    projected[0, :, -17:], projected[1, :, -17:] = torch.inf, -torch.inf
    for candidate in ("g", "identity", "tanh"):
        found, wanted = (gated_scan(projected, None, None, gates, candidate, b) for b in ("cpu", "reference"))
        torch.testing.assert_close(found, wanted)


def test_torch_func_differentiates_in_both_directions_and_per_sample():
    projected, direction = torch.randn(3, 5, 16), torch.randn(3, 5, 16)

    def total(x):
        return gated_scan(x)[0].sum()

    x = projected.clone().requires_grad_()
    (grad,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(torch.func.grad(total)(projected), grad)
    torch.testing.assert_close(torch.func.jvp(total, (projected,), (direction,))[1], (grad * direction).sum())
    with forward_ad.dual_level():
        dual = total(forward_ad.make_dual(projected, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, (grad * direction).sum())
    per_sample = torch.func.vmap(torch.func.grad(lambda row: total(row[None])))(projected)
    torch.testing.assert_close(per_sample, grad)


@needs_numba
@pytest.mark.parametrize("name", ["mingru", "minlstm", "mamba"])
def test_a_second_derivative_is_refused_by_the_kernels_with_what_computes_it(name):
    backbone, x = make_backbone(name, 8, 1), torch.randn(2, 5, 8, requires_grad=True)

    def slope(x):
        return torch.autograd.grad(backbone(x)[0].sin().sum(), x, create_graph=True)[0].square().sum()

    # a graph that nobody differentiates is no error
    assert slope(x).isfinite()
    message = (
        r"^the compiled kernels .* have no second derivatives; in float64 \(backbone.double\(\)\) and under torch.func"
    )
    with pytest.raises(RuntimeError, match=message):
        slope(x).backward()

    under_func = torch.func.grad(lambda x: torch.func.grad(lambda x: backbone(x)[0].sin().sum())(x).square().sum())(
        x.detach()
    )
    backbone.double()
    exact = x.detach().double().requires_grad_()
    slope(exact).backward()
    torch.testing.assert_close(under_func, exact.grad.float(), rtol=1e-4, atol=1e-5)


@needs_numba
@pytest.mark.parametrize(
    "run",
    [
        lambda x: linear_scan(x, x),
        lambda x: CausalConv(3, 2)(x)[0],
        lambda x: selective_scan(x, x, -torch.ones(3, 3), x, x)[0],
    ],
    ids=["linear_scan", "causal_conv", "selective_scan"],
)
def test_each_operator_behind_them_refuses_it(run):
    x = torch.rand(2, 5, 3, requires_grad=True)
    y = run(x)
    (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="have no second derivatives"):
        gradient.sum().backward()


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
    turn = torch.tensor([-1.0, 2.0])[:, None].expand(2, last.shape[1])
    torch.library.opcheck(torch.ops.unroll.gated_scan, (*inputs, case.reset, gates, "g", None))
    torch.library.opcheck(torch.ops.unroll.gated_scan, (*inputs, None, gates, "g", turn))
    saved = (case.projected.detach(), case.h0.detach(), case.reset, h)
    torch.library.opcheck(
        torch.ops.unroll.gated_scan_backward, (case.dh, torch.zeros_like(last), *saved, gates, "g", turn)
    )


@needs_numba
@pytest.mark.parametrize("reverse", [False, True])
def test_the_general_operators_keep_the_rules_of_torch_library(reverse):
    torch.manual_seed(0)
    a, b, h0 = torch.rand(2, 9, 5), torch.randn(2, 9, 5), torch.randn(2, 5)
    reset, dh = torch.rand(2, 9) < 0.2, torch.randn(2, 9, 5)
    h = linear_scan(a, b, h0, reset, "cpu", reverse)  # loads the operators' bodies
    torch.library.opcheck(torch.ops.unroll.linear_scan_backward, (dh, a, h0, reset, h, reverse))
    inputs = [x.requires_grad_() for x in (a, b, h0)]
    torch.library.opcheck(torch.ops.unroll.linear_scan, (*inputs, reset, reverse))


@pytest.fixture
def walk(monkeypatch):
    """The functions of unroll.policies that are being called when the CPU's kernel is, from the outermost on."""
    module, _ = load("cpu")
    kernel, found = module.numba_kernels.gated_forward, []

    def spy(*arguments):
        frame, names = sys._getframe(1), []
        while frame is not None:
            if frame.f_globals["__name__"].startswith("unroll.policies"):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        found.append(names[::-1])
        kernel(*arguments)

    monkeypatch.setattr(module.numba_kernels, "gated_forward", spy)
    return found


@needs_numba
def test_between_a_decision_policy_and_the_kernel_lie_three_functions(walk):
    policy = DecisionPolicy(3, gym.spaces.Box(-1, 1, (2,), np.float32), d_model=8, n_layers=1, tokens="fused")
    shapes = {"observation": (2, 5, 3), "previous_action": (2, 5, 2), "return_to_go": (2, 5), "timestep": (2, 5)}
    policy({name: torch.zeros(shape) for name, shape in shapes.items()})
    policys = ["DecisionPolicy.forward", "DecisionPolicy.features"]
    assert walk == [[*policys, "ResidualStack.forward", "MinRNN.forward", "gated_scan", "gated_forward"]]


@needs_numba
def test_between_an_actor_critic_policy_and_the_kernel_lie_three_functions(walk):
    policy = make_ppo(vector(Noise)).policy
    start = torch.zeros(2, 5, dtype=torch.bool)
    policy.evaluate_sequences(torch.zeros(2, 5, 3), torch.zeros(2, 5, 2), policy.initial_state(2), start)
    outermost = "RecurrentActorCriticPolicy.evaluate_sequences"
    expected = [outermost, "ResidualStack.forward", "MinRNN.forward", "gated_scan", "gated_forward"]
    assert walk == [expected] * 4  # two layers of the actor's, and two of the critic's
