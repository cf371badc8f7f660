"""The window memory: whatever came, the answer is that of the last steps of the row's own episode, from nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unroll.policies.backbones import make_backbone
from unroll.policies.window import Window


@pytest.mark.parametrize("name", ["mingru", "lstm", "transformer"])
@given(data=st.data())
def test_a_window_sees_the_last_tokens_of_its_own_episode_and_nothing_else(name, data):
    rows, steps, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 2))
    length = group * data.draw(st.integers(1, 4))
    begins = data.draw(st.lists(st.lists(st.booleans(), min_size=rows, max_size=rows), min_size=steps, max_size=steps))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    backbone = make_backbone(name, 8, 1).double().eval()
    window, x = Window(backbone, length), torch.randn(rows, steps, group, 8, dtype=torch.float64)
    state, since = None, [0] * rows
    for t in range(steps):
        reset = torch.zeros(rows, group, dtype=torch.bool)
        reset[:, 0] = torch.tensor(begins[t])
        with torch.no_grad():
            y, state = window(x[:, t], state, reset if any(begins[t]) else None)
        for row in range(rows):
            since[row] = t if begins[t][row] else since[row]
            own = x[row, since[row] : t + 1].flatten(0, 1)[-length:]
            with torch.no_grad():
                expected = backbone(own[None])[0][0, -group:]
            torch.testing.assert_close(y[row], expected, rtol=1e-8, atol=1e-8)


@given(data=st.data())
def test_rows_of_a_window_do_not_depend_on_the_rows_beside_them(data):
    rows, steps = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 6))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    window = Window(make_backbone("mingru", 8, 1).double().eval(), 3)
    x, begins = torch.randn(steps, rows, 1, 8, dtype=torch.float64), torch.rand(steps, rows, 1) < 0.3
    kept = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4)))
    both, some = None, None
    for t in range(steps):
        with torch.no_grad():
            all_rows, both = window(x[t], both, begins[t])
            chosen, some = window(x[t, kept], some, begins[t, kept])
        torch.testing.assert_close(chosen, all_rows[kept], rtol=1e-8, atol=1e-8)
