"""The linear recurrence against its definition, by PyTorch and by the kernels."""

import logging

import pytest
import torch

from unroll.policies.backbones import kernels
from unroll.policies.backbones.scan import gated_scan, linear_scan

BACKENDS = pytest.mark.parametrize("backend", ["reference", "auto"])


def loop(a, b, h0, reset):
    h, states = h0, []
    for t in range(a.shape[1]):
        h = torch.where(reset[:, t].reshape(-1, *[1] * (a.ndim - 2)), torch.zeros_like(h), h)
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


@BACKENDS
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 4, 3, 6), (3, 300, 40)])
def test_the_scan_is_the_recurrence(shape, backend):
    a, b, h0 = torch.rand(shape), torch.randn(shape), torch.randn(shape[:1] + shape[2:])
    reset = torch.rand(shape[:2]) < 0.3
    torch.testing.assert_close(linear_scan(a, b, h0, reset, backend), loop(a, b, h0, reset))
    never = torch.zeros_like(reset)
    torch.testing.assert_close(linear_scan(a, b, backend=backend), loop(a, b, torch.zeros_like(h0), never))
    flipped = [x.flip(1) for x in (a, b, reset)]
    backwards = loop(*flipped[:2], h0, flipped[2]).flip(1)
    torch.testing.assert_close(linear_scan(a, b, h0, reset, backend, reverse=True), backwards)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernels_gradients_are_those_of_the_reference(reverse):
    inputs = [torch.rand(3, 90, 21), torch.randn(3, 90, 21).mT.contiguous().mT, torch.randn(1, 21).expand(3, 21)]
    inputs, reset = [x.requires_grad_() for x in inputs], torch.rand(3, 90) < 0.1
    weight = torch.randn(21).expand(3, 90, 21)
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        h = linear_scan(*(x.to(dtype) for x in inputs), reset, backend, reverse)
        grads = torch.autograd.grad(h, inputs, weight.to(dtype))
        if backend == "auto":
            found = grads
    for one, other in zip(found, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_returns_to_go_are_a_scan_from_the_last_step_to_the_first():
    rewards, gamma = torch.randn(2, 6), 0.9
    last_of_episode = torch.tensor([[False, False, True, False, False, False]] * 2)
    found = linear_scan(torch.full((2, 6, 1), gamma), rewards[..., None], reset=last_of_episode, reverse=True)[..., 0]
    for first, end in ((0, 3), (3, 6)):
        for t in range(first, end):
            wanted = sum(gamma ** (k - t) * rewards[:, k] for k in range(t, end))
            torch.testing.assert_close(found[:, t], wanted)


def test_the_gradients_of_the_scan_are_right_also_at_a_zero_initial_state():
    a, b = torch.rand(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    h0, reset = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    reset[0, 2] = True
    inputs = [x.requires_grad_() for x in (a, b, h0)]
    assert torch.autograd.gradcheck(lambda a, b, h0: linear_scan(a, b, h0, reset), inputs)


@BACKENDS
def test_nothing_is_carried_over_a_reset_not_even_nan(backend):
    a, b = torch.rand(2, 5, 3), torch.randn(2, 5, 3)
    b[:, 1] = torch.nan
    reset = torch.tensor([[False, False, False, True, False]] * 2)
    torch.testing.assert_close(linear_scan(a, b, None, reset, backend)[:, 3:], linear_scan(a[:, 3:], b[:, 3:]))


def test_half_precision_inputs_are_accumulated_in_float32():
    a, b = torch.full((1, 2000, 1), 0.999, dtype=torch.bfloat16), torch.ones(1, 2000, 1, dtype=torch.bfloat16)
    h = linear_scan(a, b)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, linear_scan(a.double(), b.double()).float(), rtol=1e-4, atol=0)


def test_an_unknown_backend_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match="choose one of auto, reference, cpu, cuda"):
        linear_scan(torch.rand(1, 1, 1), torch.rand(1, 1, 1), backend="gpu")


def test_complex_decays_turn_the_state():
    """The linear recurrent unit (2303.06349) is such a scan; the kernels compute in float32 alone."""
    shape = (2, 6, 3)
    a = torch.polar(torch.rand(shape), 3 * torch.rand(shape)).requires_grad_()
    b, h0, reset = torch.randn(shape, dtype=a.dtype), torch.randn(2, 3, dtype=a.dtype), torch.rand(2, 6) < 0.3
    found, wanted = linear_scan(a, b, h0, reset), loop(a, b, h0, reset)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(linear_scan(a.abs(), b.abs(), h0, reset), loop(a.abs() + 0j, b.abs() + 0j, h0, reset))
    gradients = [torch.autograd.grad(h.abs().sum(), a)[0] for h in (found, wanted)]
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match=r"takes tensors up to float32 on cpu, not torch.complex64 on cpu$"):
        linear_scan(a, b, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_backend_that_cannot_compute_on_the_tensors_is_an_error(backend):
    with pytest.raises(ValueError, match=f"takes tensors up to float32 on {backend}, not torch.float64 on cpu"):
        linear_scan(torch.rand(1, 1, 1).double(), torch.rand(1, 1, 1), backend=backend)


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'numba'"), RuntimeError("cannot cache function: no locator available")]
)
def test_without_numba_or_its_cache_the_reference_computes_and_the_log_says_so_once(error, monkeypatch, caplog):
    def fail(name):
        raise error

    x, h0 = torch.randn(2, 5, 6), torch.randn(2, 3)
    expected = gated_scan(x, h0, backend="reference")
    monkeypatch.setattr(kernels.importlib, "import_module", fail)
    kernels.load.cache_clear()
    kernels._log_once.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "unroll"):
            for _ in range(2):
                torch.testing.assert_close(gated_scan(x, h0), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match=f"cannot be used: numba: {error}"):
            gated_scan(x, h0, backend="cpu")
    finally:
        kernels.load.cache_clear()
        kernels._log_once.cache_clear()
    assert [str(error) in record.getMessage() for record in caplog.records] == [True]


@BACKENDS
def test_shapes_that_do_not_fit_are_one_line_and_no_kernel_sees_them(backend):
    x, a = torch.randn(3, 5, 8), torch.rand(3, 5, 4)
    wrong = [(torch.zeros(1, 4), None), (torch.zeros(3, 400), None), (None, torch.zeros(3, 4) > 0)]
    wrong.append((None, torch.zeros(3, 5, dtype=torch.uint8)))
    for h0, reset in wrong:
        for scan, inputs in ((gated_scan, [x]), (linear_scan, [a, a])):
            with pytest.raises(ValueError, match=r"^(the state before|reset) \[B, .+\] is .+ here, not .+$"):
                scan(*inputs, h0, reset, backend=backend)
    with pytest.raises(ValueError, match="a and b have one shape"):
        linear_scan(a[:1], a, backend=backend)
    for inputs in (x[..., :7], x[0]):
        with pytest.raises(ValueError, match="cannot have the shape"):
            gated_scan(inputs, backend=backend)
    with pytest.raises(ValueError, match="at least one step"):
        gated_scan(x[:, :0], backend=backend)


@BACKENDS
def test_a_sequence_of_numbers_and_an_empty_batch_are_scanned(backend):
    a, b, h0 = torch.rand(3, 5), torch.randn(3, 5), torch.randn(3)
    found = linear_scan(a, b, h0, backend=backend, reverse=True)
    torch.testing.assert_close(found, linear_scan(a[..., None], b[..., None], h0[:, None], reverse=True)[..., 0])
    assert linear_scan(a[:0], b[:0], backend=backend).shape == (0, 5)
    assert [x.shape for x in gated_scan(torch.randn(0, 5, 8), backend=backend)] == [(0, 5, 4), (0, 4)]
