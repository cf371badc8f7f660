"""The laws of a backbone, over the registry: a new backbone is tested by being registered.

25 random cases each; ``--hypothesis-profile thorough`` draws 200.

One of your own, from a file my_module.py in the current folder:
python -m pytest tests/test_laws.py --backbone my_module:MyBackbone
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sequences import TOLERANCE, WINDOW, assert_same, dtype_name, meaningful, sequences
from unroll.policies.backbones import BACKBONES, make_backbone, map_state, options_of, select_rows


def pytest_generate_tests(metafunc):
    """Every law over every backbone, or over the one of --backbone alone, in both types."""
    one = metafunc.config.getoption("--backbone")
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [one] if one else BACKBONES)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", TOLERANCE, ids=dtype_name)


def make(name, dtype=torch.float64, d_model=16, n_layers=2):
    torch.manual_seed(0)
    options = {"window": WINDOW} if "window" in options_of(name) else {}
    return make_backbone(name, d_model, n_layers, **options).to(dtype).eval()


@given(data=st.data())
def test_steps_are_the_sequence(name, dtype, data):
    backbone = make(name, dtype)
    x, reset = data.draw(sequences(dtype))
    x.requires_grad_()
    y, final = backbone(x, None, reset)
    state, outputs = backbone.initial_state(len(x)), []
    for t in range(x.shape[1]):
        output, state = backbone.step(x[:, t], state, reset[:, t])
        outputs.append(output)
    assert_same(torch.stack(outputs, 1), y, dtype)
    assert_same(meaningful(state), meaningful(final), dtype)
    gradients = [torch.autograd.grad(z.square().sum(), x)[0] for z in (torch.stack(outputs, 1), y)]
    assert_same(*gradients, dtype)


def test_steps_are_the_sequence_under_autocast_as_far_as_bfloat16_goes(name):
    backbone = make(name, torch.float32, d_model=32)
    x, reset = torch.randn(4, 12, 32), torch.rand(4, 12) < 0.2
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        y, _ = backbone(x, None, reset)
        state, outputs = backbone.initial_state(len(x)), []
        for t in range(x.shape[1]):
            output, state = backbone.step(x[:, t], state, reset[:, t])
            outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), y, rtol=0, atol=1e-2 * y.abs().max().item(), check_dtype=False)


@given(data=st.data())
def test_a_sequence_may_be_cut_anywhere(name, dtype, data):
    backbone = make(name, dtype)
    x, reset = data.draw(sequences(dtype))
    cut = data.draw(st.integers(0, x.shape[1]))
    y, final = backbone(x, None, reset)
    parts, state = [], backbone.initial_state(len(x))
    for piece in (slice(0, cut), slice(cut, None)):
        if x[:, piece].shape[1]:
            output, state = backbone(x[:, piece], state, reset[:, piece])
            parts.append(output)
    assert_same(torch.cat(parts, 1), y, dtype)
    assert_same(meaningful(state), meaningful(final), dtype)


@given(data=st.data())
def test_no_reset_is_the_same_as_a_reset_that_is_never_true(name, dtype, data):
    backbone = make(name, dtype)
    x, _ = data.draw(sequences(dtype))
    y, final = backbone(x)
    z, also = backbone(x, backbone.initial_state(len(x)), torch.zeros(x.shape[:2], dtype=torch.bool))
    assert_same(y, z, dtype)
    assert_same(meaningful(final), meaningful(also), dtype)


@given(data=st.data())
def test_an_episode_is_blind_to_the_one_before(name, dtype, data):
    backbone = make(name, dtype)
    x, reset = data.draw(sequences(dtype))
    start = data.draw(st.integers(0, x.shape[1] - 1))
    reset[:, start] = True
    x.requires_grad_()
    _, before = backbone(torch.randn(len(x), 7, 16, dtype=dtype))
    y, final = backbone(x, before, reset)
    alone, also = backbone(x[:, start:], None, reset[:, start:])
    assert_same(y[:, start:], alone, dtype)
    assert_same(meaningful(final), meaningful(also), dtype)
    gradient = torch.autograd.grad(y[:, start:].square().sum(), x)[0]
    assert (gradient[:, :start] == 0).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e38])
def test_a_simulation_that_breaks_is_forgotten_with_its_episode(name, broken):
    """Acting goes on after a NaN, for its row too; likewise a sequence that continues from such a state."""
    backbone = make(name, torch.float32)
    x = torch.randn(3, 8, 16)
    x[1, 2] = broken
    state, outputs, start = backbone.initial_state(3), [], torch.tensor([False, True, False])
    for t in range(8):
        if t == 4:
            before = state
        y, state = backbone.step(x[:, t], state, start if t == 4 else None)
        outputs.append(y)
    y, also = backbone(x[:, 4:], before, torch.stack([start, *[torch.zeros_like(start)] * 3], 1))
    assert_same(torch.stack(outputs[4:], 1), y, torch.float32)
    assert_same(y[1], backbone(x[1:2, 4:])[0][0], torch.float32)
    map_state(lambda part: pytest.fail("not finite") if not torch.isfinite(part).all() else part, also)


@given(data=st.data())
def test_the_future_does_not_leak(name, dtype, data):
    backbone = make(name, dtype)
    x, reset = data.draw(sequences(dtype))
    t = data.draw(st.integers(0, x.shape[1] - 1))
    y, _ = backbone(x, None, reset)
    changed = x.clone()
    changed[:, t, 0] += 3  # one channel: the norm would hide a shift of all
    z, _ = backbone(changed, None, reset)
    assert_same(y[:, :t], z[:, :t], dtype)
    assert not torch.allclose(y[:, t], z[:, t], atol=1e-6)


def test_the_past_matters_long_after(name, dtype):
    backbone = make(name, dtype)
    x = torch.randn(2, 30, 16, dtype=dtype)
    changed = x.clone()
    changed[:, 0, 0] += 5
    reach = (WINDOW - 1) * 2 if name == "transformer" else 29  # two layers of a window
    difference = (backbone(x)[0] - backbone(changed)[0]).abs().amax((0, 2))
    assert (difference[: reach + 1] > 1e-7).all()


@given(data=st.data())
def test_rows_of_the_batch_are_independent(name, dtype, data):
    backbone = make(name, dtype)
    x, reset = data.draw(sequences(dtype))
    state = backbone(torch.randn(len(x), 3, 16, dtype=dtype))[1]
    rows = torch.tensor(data.draw(st.permutations(range(len(x)))))[: max(1, len(x) - 1)]
    y, final = backbone(x, state, reset)
    z, also = backbone(x[rows], select_rows(state, rows), reset[rows])
    assert_same(y[rows], z, dtype)
    assert_same(meaningful(select_rows(final, rows)), meaningful(also), dtype)


def test_every_tensor_of_a_state_has_the_batch_first(name, dtype):
    backbone = make(name, dtype)
    for state in (backbone.initial_state(3), backbone(torch.randn(3, 4, 16, dtype=dtype))[1]):
        map_state(lambda x: pytest.fail(f"{x.shape}") if x.shape[0] != 3 else x, state)


def test_padding_on_the_right_changes_nothing_before_it(name, dtype):
    backbone = make(name, dtype)
    x = torch.randn(2, 12, 16, dtype=dtype)
    padded = torch.cat([x, torch.full((2, 6, 16), 1e3, dtype=dtype)], 1)
    weights = list(backbone.parameters())
    plain, with_padding = backbone(x)[0], backbone(padded)[0][:, :12]
    assert_same(plain, with_padding, dtype)
    for g, h in zip(
        torch.autograd.grad(plain.square().sum(), weights),
        torch.autograd.grad(with_padding.square().sum(), weights),
        strict=True,
    ):
        assert_same(g, h, dtype)


def test_every_parameter_gets_a_gradient_and_no_state_is_written_to(name, dtype):
    backbone = make(name, dtype)
    state = backbone.initial_state(2)
    before = map_state(torch.clone, state)
    for parameter, gradient in zip(
        dict(backbone.named_parameters()),
        torch.autograd.grad(
            backbone(torch.randn(2, 9, 16, dtype=dtype), state)[0].cos().sum(), list(backbone.parameters())
        ),
        strict=True,
    ):
        assert torch.isfinite(gradient).all(), parameter
        assert gradient.abs().sum() > 0, parameter
    backbone.step(torch.randn(2, 16, dtype=dtype), state)
    assert_same(state, before, dtype)


def test_a_step_leaves_the_state_that_it_is_given_as_it_was(name, dtype):
    backbone = make(name, dtype)
    state = backbone(torch.randn(3, 2 * WINDOW, 16, dtype=dtype))[1]
    before, x = map_state(torch.clone, state), torch.randn(3, 16, dtype=dtype)
    for reset in (None, torch.tensor([True, False, False])):
        y, after = backbone.step(x, state, reset)
        backbone.step(torch.randn_like(x), after, reset)
        map_state(lambda p, q: p if torch.equal(p, q) else pytest.fail("written to"), state, before)
        z, also = backbone.step(x, state, reset)  # another future from the same state
        assert_same((y, meaningful(after)), (z, meaningful(also)), dtype)


def test_a_step_without_a_reset_is_one_whose_reset_is_nowhere_true(name, dtype):
    backbone = make(name, dtype)
    state = backbone(torch.randn(3, 4, 16, dtype=dtype))[1]
    x = torch.randn(3, 16, dtype=dtype)
    (y, after), (z, also) = backbone.step(x, state), backbone.step(x, state, torch.zeros(3, dtype=torch.bool))
    assert_same((y, meaningful(after)), (z, meaningful(also)), dtype)


@pytest.mark.parametrize(("d_model", "window"), [(16, 1), (16, 64), (128, 7), (512, 3)])
def test_steps_are_the_sequence_in_the_sizes_that_users_run(name, d_model, window):
    torch.manual_seed(1)
    backbone = make_backbone(name, d_model, 2, **({"window": window} if "window" in options_of(name) else {})).eval()
    x, reset = torch.randn(3, 17, d_model), torch.rand(3, 17) < 0.15
    y, _ = backbone(x, None, reset)
    state = backbone.initial_state(3)
    for t in range(17):
        output, state = backbone.step(x[:, t], state, reset[:, t])
        assert_same(output, y[:, t], torch.float32)


def test_a_short_sequence_under_autocast_is_near_that_of_float32(name):
    backbone = make(name, torch.float32)
    x = torch.randn(2, 40, 16)
    y, _ = backbone(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = backbone(x)
    assert (y - z.float()).abs().max() < 0.15


def test_a_state_goes_into_autocast_and_out_of_it(name):
    backbone = make(name, torch.float32)
    x, reset = torch.randn(3, 6, 16), torch.rand(3, 6) < 0.3
    state, (expected, _) = backbone.initial_state(3), backbone(x.repeat(1, 8, 1), None, reset.repeat(1, 8))
    outputs = []
    for i in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=i % 4 >= 2):
            if i % 2:
                y, state = backbone(x, state, reset)
                outputs.append(y)
                continue
            for t in range(6):
                y, state = backbone.step(x[:, t], state, reset[:, t])
                outputs.append(y[:, None])
    assert (torch.cat(outputs, 1).float() - expected).abs().max() < 0.15
    with torch.autocast("cpu", torch.bfloat16):
        _, state = backbone(x)
    backbone.step(x[:, 0], state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_computes_what_the_cpu_computes(name):
    backbone = make(name)
    x, reset = torch.randn(3, 20, 16, dtype=torch.float64), torch.rand(3, 20) < 0.2
    y, _ = backbone(x, None, reset)
    z, _ = backbone.cuda()(x.cuda(), None, reset.cuda())
    torch.testing.assert_close(z.cpu(), y)
