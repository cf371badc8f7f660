"""Random sequences with episodes in them, and how the laws' tests compare what comes of them."""

import torch
from hypothesis import strategies as st

from unroll.policies.backbones import map_state

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
WINDOW = 5  # shorter than most of the sequences below


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


@st.composite
def sequences(draw, dtype, d_model=16):
    """x [B, T, D] and reset [B, T], of random sizes, with episodes that begin anywhere."""
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(batch, time, d_model, dtype=dtype, generator=generator)
    reset = torch.rand(batch, time, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    return x, reset


def assert_same(a, b, dtype):
    map_state(lambda p, q: torch.testing.assert_close(p, q, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]) or p, a, b)


def meaningful(state):
    """A cache may hold anything in the slots that are not valid; blank them before states are compared."""
    if isinstance(state, tuple) and state and isinstance(state[-1], torch.Tensor) and state[-1].dtype == torch.int64:
        *parts, past = state
        caches = [part.ndim == 4 for part in parts]
        filled = [torch.arange(part.shape[1]) >= part.shape[1] - past[:, None] for part in parts]
        return (*(p * f[..., None, None] if c else p for p, f, c in zip(parts, filled, caches, strict=True)), past)
    return tuple(meaningful(part) for part in state) if isinstance(state, tuple) else state
