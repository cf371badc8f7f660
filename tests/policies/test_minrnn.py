"""minGRU and minLSTM against the paper: its log-space form, its parameter counts, and the traps of ports."""

import pytest
import torch
import torch.nn.functional as F

from unroll.errors import BackboneError
from unroll.policies.backbones.gru import GRU
from unroll.policies.backbones.kernels.reference import positive
from unroll.policies.backbones.lstm import LSTM
from unroll.policies.backbones.mingru import MinGRU
from unroll.policies.backbones.minlstm import MinLSTM
from unroll.policies.backbones.remember import remember_bias

BOTH = pytest.mark.parametrize("mixer_class", [MinGRU, MinLSTM])


def log_space_scan(log_keep, log_update):
    """Heinsen's scan (2311.06281): log h[t] = a*[t] + logcumsumexp(log b - a*), a* the sum of the log decays."""
    decay = log_keep.cumsum(1)
    return (decay + torch.logcumsumexp(log_update - decay, 1)).exp()


def log_g(x):
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))


def test_mingru_equals_the_log_space_form_of_the_paper():
    torch.manual_seed(0)
    mixer, x = MinGRU(8).double(), torch.randn(2, 30, 8, dtype=torch.float64)
    gate, candidate = mixer.project(x).chunk(2, -1)
    h = log_space_scan(-F.softplus(gate), -F.softplus(-gate) + log_g(candidate))
    torch.testing.assert_close(mixer(x)[0], mixer.out(h))


def test_minlstm_equals_the_log_space_form_of_the_paper():
    torch.manual_seed(0)
    mixer, x = MinLSTM(8).double(), torch.randn(2, 30, 8, dtype=torch.float64)
    forget, take, candidate = mixer.project(x).chunk(3, -1)
    difference = F.softplus(-forget) - F.softplus(-take)
    h = log_space_scan(-F.softplus(difference), -F.softplus(-difference) + log_g(candidate))
    torch.testing.assert_close(mixer(x)[0], mixer.out(h))


def test_minlstm_without_normalised_gates_is_the_released_form():
    torch.manual_seed(0)
    mixer, x = MinLSTM(8, normalize_gates=False).double(), torch.randn(2, 30, 8, dtype=torch.float64)
    forget, take, candidate = mixer.project(x).chunk(3, -1)
    h = log_space_scan(F.logsigmoid(forget), F.logsigmoid(take) + log_g(candidate))
    torch.testing.assert_close(mixer(x)[0], mixer.out(h))


@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize(
    ("expansion", "mingru", "minlstm"), [(1, 33.3, 37.5), (2, 22.2, 25), (3, 16.7, 18.75), (4, 13.3, 15)]
)
def test_the_weights_are_the_paper_s_share_of_those_of_gru_and_lstm(size, expansion, mingru, minlstm):
    """Without biases and the projection down (section 3.1.3): 2·d_h·d_x of 3·d_h·(d_x + d_h), 3 of 4."""
    for ours, theirs, share in ((MinGRU, torch.nn.GRU, mingru), (MinLSTM, torch.nn.LSTM, minlstm)):
        with torch.device("meta"):
            few = ours(size, expansion=float(expansion)).project.weight.numel()
            many = sum(w.numel() for w in theirs(size, expansion * size, bias=False).parameters())
        assert 100 * few / many == pytest.approx(share, abs=0.05)


@BOTH
def test_the_carried_state_is_the_hidden_state_itself(mixer_class):
    """Not its logarithm, nor something that the candidate's activation is applied to once more."""
    mixer, x = mixer_class(8), torch.randn(2, 5, 8)
    y, h = mixer(x)
    torch.testing.assert_close(mixer.out(h), y[:, -1])
    assert (h > 0).all()


@BOTH
def test_a_zero_or_negative_initial_state_has_finite_values_and_gradients(mixer_class):
    mixer, x = mixer_class(8), torch.randn(2, 5, 8)
    for value in (0.0, -3.0):
        h0 = torch.full((2, 8), value, requires_grad=True)
        gradient = torch.autograd.grad(mixer(x, h0)[0].square().sum(), h0)[0]
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).any()


@BOTH
def test_a_learned_initial_state_is_where_every_episode_starts(mixer_class):
    torch.manual_seed(0)
    mixer, x = mixer_class(8, learned_initial_state=True).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    assert (mixer.initial_state(2) == positive(mixer.before)).all()
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 3] = True
    y, _ = mixer(x, torch.randn(2, 8, dtype=torch.float64), reset)
    torch.testing.assert_close(y[:, 3:], mixer(x[:, 3:])[0])
    gradient = torch.autograd.grad(y[:, 3:].square().sum(), mixer.before)[0]
    assert (gradient != 0).all()


@BOTH
def test_a_learned_initial_state_and_the_highway_are_what_they_say(mixer_class):
    torch.manual_seed(0)
    mixer, x = mixer_class(8, highway=True), torch.randn(2, 6, 8)
    share = torch.sigmoid(mixer.highway(x))
    mixer.highway, highway = None, mixer.highway
    plain = mixer(x)[0]
    mixer.highway = highway
    torch.testing.assert_close(mixer(x)[0], share * plain + (1 - share) * x)


@BOTH
@pytest.mark.parametrize(("candidate", "function"), [("identity", lambda x: x), ("tanh", torch.tanh), ("g", positive)])
def test_the_candidate_goes_through_the_activation_that_was_chosen(mixer_class, candidate, function):
    mixer, x = mixer_class(8, candidate=candidate, memory_span=0.0), torch.randn(1, 1, 8)
    _, update = mixer.gates(x)
    _, state = mixer(x)
    projected = mixer.project(x).split(mixer.d_inner, -1)
    take = torch.sigmoid(projected[0]) if mixer_class is MinGRU else 1 - mixer.gates(x)[0]
    torch.testing.assert_close(update, take * function(projected[-1]))
    torch.testing.assert_close(state, update[:, 0])


def test_the_candidate_is_positive_continuous_and_has_a_gradient_at_zero():
    x = torch.tensor([-50.0, -1e-6, 0.0, 1e-6, 3.0], requires_grad=True)
    torch.testing.assert_close(positive(x), torch.tensor([0.0, 0.5, 0.5, 0.5, 3.5]), atol=1e-5, rtol=0)
    positive(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[1:3] > 0.2).all()
    assert x.grad[3] > 0.9


def test_gates_start_by_remembering_over_two_steps_to_the_whole_span():
    retention = torch.sigmoid(remember_bias(64, 100.0))
    torch.testing.assert_close(1 / (1 - retention[[0, -1]]), torch.tensor([2.0, 100.0]), rtol=1e-3, atol=0)
    assert (remember_bias(64, 0.0) == 0).all()
    with pytest.raises(BackboneError, match="memory_span must be at least 2 steps, or 0 for none, not 1"):
        remember_bias(64, 1.0)


@pytest.mark.parametrize(
    ("mixer_class", "options"), [(MinGRU, {}), (MinLSTM, {}), (MinLSTM, {"normalize_gates": False})]
)
def test_gates_of_every_form_start_with_the_same_retention(mixer_class, options):
    mixer = mixer_class(64, memory_span=50.0, **options)
    keep, update = mixer.gates(torch.zeros(64))
    torch.testing.assert_close(keep, torch.sigmoid(remember_bias(64, 50.0)))
    torch.testing.assert_close(update, (1 - keep) * positive(mixer.project.bias[-64:]))


@pytest.mark.parametrize("mixer_class", [GRU, LSTM])
def test_gru_and_lstm_start_with_the_retention_of_the_others(mixer_class):
    mixer, retention = mixer_class(64, memory_span=50.0), torch.sigmoid(remember_bias(64, 50.0))
    zeros, ones = torch.zeros(1, 64), torch.ones(1, 64)
    for weight in mixer.parameters():
        weight.data[128:] = 0  # the candidate is 0
        if weight.ndim == 2:
            weight.data.zero_()
    _, state = mixer.step(zeros, ones if mixer_class is GRU else (zeros, ones))
    torch.testing.assert_close(state[-1].reshape(64), retention)
    if mixer_class is LSTM:
        mixer.lstm.bias_ih_l0.data[128:192] = 20  # now it is 1
        torch.testing.assert_close(mixer.step(zeros, (zeros, zeros))[1][1][0], 1 - retention)


def test_gates_of_which_both_are_closed_share_what_there_is():
    mixer = MinLSTM(4)
    with torch.no_grad():
        mixer.project.weight.zero_()
        mixer.project.bias[:8] = -200  # float32 has no σ(-200)
    keep, _ = mixer.gates(torch.zeros(4))
    torch.testing.assert_close(keep, torch.full((4,), 0.5))


@BOTH
def test_long_memory_survives_bfloat16(mixer_class):
    """A gate of 0.9999 is 1 in bfloat16: a recurrence that rounds it grows without end."""
    torch.manual_seed(0)
    mixer, x = mixer_class(16, memory_span=10_000.0), torch.randn(1, 3000, 16)
    _, h = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        _, low = mixer(x)
    torch.testing.assert_close(low, h, rtol=0.05, atol=0.05)


@BOTH
def test_a_signed_memory_is_turned_over_by_its_input(mixer_class):
    """The weights of h and of the candidate sum to 1; that of h goes from -1 to 1."""
    plain, signed = mixer_class(8, memory_span=0.0), mixer_class(8, memory_span=0.0, signed=True)
    signed.load_state_dict(plain.state_dict())
    x = 5 * torch.randn(40, 8)
    (keep, update), (turned, doubled) = plain.gates(x), signed.gates(x)
    torch.testing.assert_close(turned, 2 * keep - 1)
    torch.testing.assert_close(doubled, 2 * update)
    assert turned.min() < -0.9
    assert turned.max() > 0.9


@BOTH
@pytest.mark.parametrize("signed", [False, "some", True])
def test_a_memory_of_unit_variance_is_as_large_whatever_it_keeps(mixer_class, signed):
    """The candidate is white noise here, and the gates are the biases alone."""
    torch.manual_seed(0)
    mixer = mixer_class(16, memory_span=100.0, candidate="identity", signed=signed, unit_variance=True)
    with torch.no_grad():
        mixer.project.weight[: -mixer.d_inner] = 0
        mixer.project.weight[-mixer.d_inner :] = torch.eye(16)
        mixer.project.bias[-mixer.d_inner :] = 0
        mixer.out.weight.copy_(torch.eye(16))
        mixer.out.bias.zero_()
        y, _ = mixer(torch.randn(50, 1000, 16))
    assert (y[:, 300:].std((0, 1)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("options", [dict(), dict(normalize_gates=False)])
def test_a_gate_of_one_has_finite_gradients_under_unit_variance(options):
    mixer = MinLSTM(4, unit_variance=True, **options) if options else MinGRU(4, unit_variance=True)
    with torch.no_grad():
        mixer.project.bias[: mixer.d_inner] = -500 if not options else 500
    mixer(torch.randn(2, 5, 4))[0].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in mixer.parameters())


def test_signed_gates_start_with_the_same_span_but_for_a_sixteenth_that_alternates():
    every = 2 * torch.sigmoid(remember_bias(64, 50.0, signed=True)) - 1
    some = torch.sigmoid(remember_bias(64, 50.0, signed="some"))
    some[60:] *= -1
    for weights in (every, some):
        torch.testing.assert_close(weights[:60], torch.sigmoid(remember_bias(60, 50.0)))
        torch.testing.assert_close(weights[[60, 63]], torch.tensor([1 / 1.2, 1 / 3]) - 1)
    for signed in (True, "some"):
        assert (remember_bias(15, 50.0, signed) >= 0).all()  # none of so few


@BOTH
def test_some_channels_alternate_and_weights_of_before_do_not(mixer_class):
    """What was made before acts as it did."""
    plain, some = mixer_class(32), mixer_class(32, signed="some")
    x = 5 * torch.randn(40, 32)
    keep, _ = some.gates(x)
    assert (keep[:, -2:] < 0).all()
    assert (keep[:, :-2] > 0).all()
    some.load_state_dict(plain.state_dict())
    for one, other in zip(some.gates(x), plain.gates(x), strict=True):
        assert torch.equal(one, other)
    assert mixer_class(15, signed="some").turn is None  # none of so few


@BOTH
def test_weights_that_do_not_hold_the_gates_leave_their_signs(mixer_class):
    some = mixer_class(32, signed="some")
    some.load_state_dict({"out.bias": torch.ones(32)}, strict=False)
    assert (some.turn == -1).sum() == 2
    with pytest.raises(BackboneError, match="signed is false, true or some, not 'all'"):
        mixer_class(32, signed="all")


@BOTH
@pytest.mark.parametrize("options", [{}, {"unit_variance": True}])
def test_a_channel_that_alternates_is_the_mirror_of_one_that_does_not(mixer_class, options):
    """Of inputs that alternate it makes a sum that alternates."""
    mixer = mixer_class(16, candidate="identity", signed="some", **options)
    plain = mixer_class(16, candidate="identity", **options)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    with torch.no_grad():
        for one in (mixer, plain):
            one.project.weight[: -one.d_inner] = 0
            one.project.bias[-one.d_inner :] = 0
            one.out.weight.copy_(torch.eye(16))
            one.out.bias.zero_()
    x = torch.randn(3, 50, 16)
    flip = torch.ones(50, 1)
    flip[1::2] = -1
    with torch.no_grad():
        torch.testing.assert_close(mixer(x * flip)[0][..., -1:], flip * plain(x)[0][..., -1:])
        torch.testing.assert_close(mixer(x)[0][..., :-1], plain(x)[0][..., :-1])


def test_a_signed_memory_computes_a_velocity_from_positions():
    """What has moved by x[t] - x[t-1] while its velocity changed evenly has v[t] = -v[t-1] + 2·(x[t] - x[t-1])."""
    mixer = MinGRU(2, memory_span=0.0, candidate="identity", signed=True, conv=2)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.zero_()
        mixer.conv.weight[0] = 1
        mixer.conv.weight[1, 0] = -1
        mixer.project.bias[:2] = 20  # the weight of the memory is -1
        mixer.project.weight[2:] = torch.eye(2)
        mixer.out.weight.copy_(torch.eye(2))
        velocity = torch.randn(3, 50, 1).cumsum(1)
        velocity[:, 0] = 0
        position = torch.zeros(3, 50, 1)
        position[:, 1:] = ((velocity[:, 1:] + velocity[:, :-1]) / 2).cumsum(1)
        y, _ = mixer(torch.cat([position, torch.zeros_like(position)], -1))
    torch.testing.assert_close(y[..., :1], velocity, rtol=1e-4, atol=1e-4)
