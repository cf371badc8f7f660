"""The laws for every option that changes a recurrence: steps, cuts and resets at once, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_tasks import Recall, make_ppo, vector
from unroll.testing import (
    TOLERANCE,
    WINDOW,
    a_sequence_may_be_cut_anywhere,
    an_episode_is_blind_to_the_one_before,
    check_law,
    steps_are_the_sequence,
)

EVERYTHING = dict(conv=3, learned_initial_state=True, highway=True, expansion=1.5)
OPTIONS = [
    *(("mingru", options) for options in (dict(conv=4), dict(learned_initial_state=True), EVERYTHING)),
    *(("mingru", dict(candidate=candidate)) for candidate in ("identity", "tanh")),
    ("mingru", EVERYTHING | dict(candidate="tanh", memory_span=0.0)),
    ("mingru", dict(signed=True)),
    ("minlstm", dict(signed="some")),
    ("mingru", EVERYTHING | dict(signed=True, unit_variance=True, candidate="tanh")),
    ("minlstm", dict(unit_variance=True, normalize_gates=False)),
    ("minlstm", EVERYTHING),
    ("minlstm", dict(normalize_gates=False)),
    ("minlstm", EVERYTHING | dict(normalize_gates=False, candidate="identity")),
    ("sharnn", dict(attention="all", window=WINDOW)),
    ("sharnn", dict(attention="none")),
    ("sharnn", dict(window=1, boom=2)),
    ("transformer", dict(positions="none", window=WINDOW, n_heads=1)),
    ("transformer", dict(window=1, activation="relu", mlp_ratio=0.0)),
    ("mamba", dict(conv=1, d_state=3, expansion=1.0)),
    ("deltanet", dict(conv=1, n_heads=1, signed=True, memory_span=0.0)),
    ("mamba", dict(conv=7, mlp_ratio=0.0)),
    *((name, dict(plain=True, mlp_ratio=0.0)) for name in ("mingru", "lstm", "transformer", "mamba")),
    ("minlstm", dict(plain=True, conv=4)),
]
every_option = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{name} {given}" for name, given in OPTIONS])


@every_option
def test_ppo_learns_all_parameters_from_two_rollouts(name, options):
    agent = make_ppo(vector(lambda: Recall(5)), backbone=name, backbone_options=options)
    backbone = agent.policy.encoders[0].backbone
    before = {key: value.clone() for key, value in backbone.named_parameters()}
    agent.learn(2 * agent.n_steps * agent.n_envs)
    same = [key for key, value in backbone.named_parameters() if torch.equal(value, before[key])]
    # one key alone has all the attention, whatever the query is
    assert all(options.get("window") == 1 and "query" in key for key in same), same


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@every_option
@given(seed=st.integers(0, 100_000))
def test_steps_cuts_and_resets_are_exact(name, options, dtype, seed):
    for law in (steps_are_the_sequence, a_sequence_may_be_cut_anywhere, an_episode_is_blind_to_the_one_before):
        check_law(law, name, dtype, seed, **options)
