"""The fused recurrences of minGRU and minLSTM against a float64 loop over the papers' equations, in every body."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurrences import GATES, PARTS, Case, assert_close, cases, needs_numba
from unroll.policies.backbones.scan import gated_scan

BODIES = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_numba), "auto", "reference"])


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


def test_an_unknown_backend_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match="choose one of auto, reference, cpu, cuda"):
        gated_scan(torch.rand(1, 1, 2), backend="gpu")
