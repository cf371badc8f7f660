"""The laws of a backbone, over the registry: a new backbone is tested by being registered.

8 random cases each; ``--hypothesis-profile thorough`` draws 200.

One of your own, from a file my_module.py in the current folder:
python -m pytest tests/laws/test_laws.py --backbone my_module:MyBackbone
"""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from unroll.policies.backbones import BACKBONES, options_of
from unroll.testing import LAWS, TOLERANCE, WHILE_TRAINING, check_law, draw_case, steps_are_the_sequence


def pytest_generate_tests(metafunc):
    """Every law over every backbone, or over the one of --backbone alone, in both types."""
    one = metafunc.config.getoption("--backbone")
    if "law" in metafunc.fixturenames:
        metafunc.parametrize("law", LAWS, ids=lambda law: law.__name__)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [one] if one else BACKBONES)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


@settings(phases=[Phase.generate])  # a smaller seed is no simpler case
@given(seed=st.integers(0, 100_000))
def test_law(law, name, dtype, seed):
    check_law(law, name, dtype, seed)


def test_what_ppo_relies_on_holds_in_training_mode(name):
    for law in WHILE_TRAINING:
        for seed in range(4):
            check_law(law, name, torch.float32, seed, training=True)


@pytest.mark.parametrize(("d_model", "window"), [(16, 1), (16, 64), (128, 7), (512, 3)])
def test_steps_are_the_sequence_in_the_sizes_that_users_run(name, d_model, window):
    window_option = {"window": window} if "window" in options_of(name) else {}
    check_law(steps_are_the_sequence, name, torch.float32, 1, d_model, **window_option)


def make(name, d_model=16):
    return draw_case(name, torch.float32, d_model=d_model).backbone


def test_steps_are_the_sequence_under_autocast_as_far_as_bfloat16_goes(name):
    backbone = make(name, d_model=32)
    x, reset = torch.randn(4, 12, 32), torch.rand(4, 12) < 0.2
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        y, _ = backbone(x, None, reset)
        state, outputs = backbone.initial_state(len(x)), []
        for t in range(x.shape[1]):
            output, state = backbone.step(x[:, t], state, reset[:, t])
            outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), y, rtol=0, atol=1e-2 * y.abs().max().item(), check_dtype=False)


def test_a_short_sequence_under_autocast_is_near_that_of_float32(name):
    backbone = make(name)
    x = torch.randn(2, 40, 16)
    y, _ = backbone(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = backbone(x)
    assert (y - z.float()).abs().max() < 0.15


def test_a_state_goes_into_autocast_and_out_of_it(name):
    backbone = make(name)
    x, reset = torch.randn(3, 6, 16), torch.rand(3, 6) < 0.3
    state = backbone.initial_state(3)
    expected, _ = backbone(x.repeat(1, 8, 1), None, reset.repeat(1, 8))
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


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
def test_law_on_the_gpu(law, name, dtype):
    for seed in range(4):
        check_law(law, name, dtype, seed, device="cuda")


@needs_gpu
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("d_model", [16, 128])
def test_the_gpu_computes_in_float32_what_the_cpu_does_in_float64(name, d_model, with_resets):
    backbone = make(name, d_model).eval()
    x, random = torch.randn(3, 40, d_model), torch.randn(3, 40, d_model)
    reset = torch.rand(3, 40) < 0.2 if with_resets else None
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        moved = backbone.to(device, dtype)
        z = x.to(device, dtype).requires_grad_()
        y, _ = moved(z, None, None if reset is None else reset.to(device))
        gradients = torch.autograd.grad((y * random.to(device, dtype)).sum(), [z, *moved.parameters()])
        results.append([part.detach().cpu().double() for part in (y, *gradients)])
    for got, exact in zip(*results, strict=True):
        # TF32 would be off by 1e-4 and more
        assert (got - exact).abs().max() < 5e-5 * exact.abs().max()
