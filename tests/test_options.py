"""The laws for every option that changes a recurrence: steps, cuts and resets at once, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_tasks import Recall, make_ppo, vector
from sequences import TOLERANCE, WINDOW, assert_same, dtype_name, meaningful, sequences
from unroll.policies.backbones import make_backbone

EVERYTHING = dict(conv=3, learned_initial_state=True, highway=True, expansion=1.5)
OPTIONS = [
    *(("mingru", options) for options in (dict(conv=4), dict(learned_initial_state=True), EVERYTHING)),
    *(("mingru", dict(candidate=candidate)) for candidate in ("identity", "tanh")),
    ("mingru", EVERYTHING | dict(candidate="tanh", memory_span=0.0)),
    ("minlstm", EVERYTHING),
    ("minlstm", dict(normalize_gates=False)),
    ("minlstm", EVERYTHING | dict(normalize_gates=False, candidate="identity")),
    ("sharnn", dict(attention="all", window=WINDOW)),
    ("sharnn", dict(attention="none")),
    ("sharnn", dict(window=1, boom=2)),
    ("transformer", dict(positions="none", window=WINDOW, n_heads=1)),
    ("transformer", dict(window=1, activation="relu", mlp_ratio=0.0)),
    ("mamba", dict(conv=1, d_state=3, expansion=1.0)),
    ("mamba", dict(conv=7, mlp_ratio=0.0)),
]
every_option = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{name}-{'-'.join(map(str, options.values()))}" for name, options in OPTIONS]
)


@every_option
def test_ppo_learns_all_parameters_from_two_rollouts(name, options):
    agent = make_ppo(vector(lambda: Recall(5)), backbone=name, backbone_options=options)
    backbone = agent.policy.encoders[0].backbone
    before = {key: value.clone() for key, value in backbone.named_parameters()}
    agent.learn(2 * agent.n_steps * agent.n_envs)
    same = [key for key, value in backbone.named_parameters() if torch.equal(value, before[key])]
    # one key alone has all the attention, whatever the query is
    assert all(options.get("window") == 1 and "query" in key for key in same), same


@pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_name)
@every_option
@given(data=st.data())
def test_steps_cuts_and_resets_are_exact(name, options, dtype, data):
    torch.manual_seed(0)
    backbone = make_backbone(name, 16, 2, **options).to(dtype).eval()
    x, reset = data.draw(sequences(dtype))
    cut, start = (data.draw(st.integers(0, x.shape[1] - 1)) for _ in range(2))
    reset[:, start] = True
    x.requires_grad_()
    _, before = backbone(torch.randn(len(x), 3, 16, dtype=dtype))
    y, final = backbone(x, before, reset)

    state, outputs = before, []
    for t in range(x.shape[1]):
        output, state = backbone.step(x[:, t], state, reset[:, t])
        outputs.append(output)
    assert_same(torch.stack(outputs, 1), y, dtype)
    assert_same(meaningful(state), meaningful(final), dtype)

    head, state = backbone(x[:, : cut + 1], before, reset[:, : cut + 1])
    tail = backbone(x[:, cut + 1 :], state, reset[:, cut + 1 :])[0] if cut + 1 < x.shape[1] else x[:, :0]
    assert_same(torch.cat([head, tail], 1), y, dtype)

    alone, also = backbone(x[:, start:], None, reset[:, start:])
    assert_same(alone, y[:, start:], dtype)
    assert_same(meaningful(also), meaningful(final), dtype)
    gradients = [torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0] for z in (y[:, start:], alone)]
    assert (gradients[0][:, :start] == 0).all()
    assert_same(*gradients, dtype)
