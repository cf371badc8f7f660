"""``check_backbone`` finds what is wrong with a backbone, and nothing wrong with one that is right."""

import pytest
import torch
from torch import nn

from unroll import testing
from unroll.errors import BackboneError
from unroll.policies.backbones import BACKBONES, Mixer
from unroll.policies.backbones.memoryless import Memoryless
from unroll.policies.backbones.scan import linear_scan
from unroll.testing import LAWS, check_backbone, check_law


class Leaky(Mixer):
    """h[t] = a·h[t-1] + W x[t]: the example of the documentation, without an error."""

    def __init__(self, d_model: int):
        super().__init__()
        self.input, self.out = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.decay = nn.Parameter(torch.linspace(2, 5, d_model))

    def initial_state(self, batch_size):
        return self.decay.new_zeros(batch_size, len(self.decay))

    def forward(self, x, state=None, reset=None):
        x = self.input(x)
        h = linear_scan(torch.sigmoid(self.decay).expand_as(x), x, state, reset)
        return self.out(h), h[:, -1]


class FeaturesFirst(Leaky):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size).T

    def forward(self, x, state=None, reset=None):
        y, state = super().forward(x, None if state is None else state.T, reset)
        return y, state.T


class GrowingState(Leaky):
    def forward(self, x, state=None, reset=None):
        y, after = super().forward(x, None if state is None else state[:, :16], reset)
        return y, torch.cat([after, after], 1)


class WritesToItsState(Leaky):
    def step(self, x, state, reset=None):
        y, after = super().step(x, state, reset)
        with torch.no_grad():
            state.copy_(after)
        return y, state


class SeesTheNextStep(Leaky):
    def forward(self, x, state=None, reset=None):
        return super().forward(torch.cat([x[:, 1:], x[:, -1:]], 1), state, reset)


class SeesTheBatch(Leaky):
    def forward(self, x, state=None, reset=None):
        return super().forward(x - x.mean(0), state, reset)


class IgnoresResets(Leaky):
    def forward(self, x, state=None, reset=None):
        return super().forward(x, state)


class LetsGradientsThroughResets(Leaky):
    """The values after a reset are right, but a gradient goes through it."""

    def forward(self, x, state=None, reset=None):
        y, state = super().forward(x, state, reset)
        leak = x.cumsum(1)
        return y + leak - leak.detach(), state


class StartsSomewhereElse(Leaky):
    def forward(self, x, state=None, reset=None):
        y, after = super().forward(x, state, reset)
        return (2 * y if state is None and reset is None else y), after


class StepsWithoutResetAreOthers(Leaky):
    def step(self, x, state, reset=None):
        y, after = super().step(x, state, reset)
        return (2 * y if reset is None else y), after


class StepsAreOthers(Leaky):
    def step(self, x, state, reset=None):
        y, after = super().step(x, state, reset)
        return y, 1.01 * after


class StepsHaveNoGradient(Leaky):
    def step(self, x, state, reset=None):
        return super().step(x, state.detach(), reset)


class ForgetsBetweenSequences(Leaky):
    """A step is a sequence of one step, and remembers."""

    def forward(self, x, state=None, reset=None):
        return super().forward(x, None if x.shape[1] > 1 else state, reset)


class MultipliesAtResets(Leaky):
    """What was there times 0: NaN stays NaN."""

    def forward(self, x, state=None, reset=None):
        states, outputs = self.initial_state(len(x)) if state is None else state, []
        for t in range(x.shape[1]):
            keep = torch.sigmoid(self.decay) * (1 if reset is None else ~reset[:, t, None])
            states = keep * states + self.input(x[:, t])
            outputs.append(states)
        return self.out(torch.stack(outputs, 1)), states


class CountsFromTheEnd(Leaky):
    """Gradients alone depend on the padding."""

    def forward(self, x, state=None, reset=None):
        y, after = super().forward(x, state, reset)
        share = self.decay * x.shape[1]
        return y + share - share.detach(), after


class ReturnsNoState(Leaky):
    def forward(self, x, state=None, reset=None):
        return super().forward(x, state, reset)[0]


class IsNarrow(Leaky):
    def forward(self, x, state=None, reset=None):
        y, state = super().forward(x, state, reset)
        return y[..., :-1], state


class KeepsAList(Leaky):
    def initial_state(self, batch_size):
        return [super().initial_state(batch_size)]


class HasAnUnusedWeight(Leaky):
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.unused = nn.Parameter(torch.ones(3))


BROKEN = [
    (FeaturesFirst, testing.outputs_and_states_have_their_shapes),
    (GrowingState, testing.outputs_and_states_have_their_shapes),
    (WritesToItsState, testing.a_state_is_never_written_to),
    (SeesTheNextStep, testing.the_future_does_not_leak),
    (SeesTheBatch, testing.rows_of_the_batch_are_independent),
    (IgnoresResets, testing.an_episode_is_blind_to_the_one_before),
    (LetsGradientsThroughResets, testing.an_episode_is_blind_to_the_one_before),
    (StartsSomewhereElse, testing.no_reset_is_a_reset_that_is_never_true),
    (StepsWithoutResetAreOthers, testing.a_step_without_a_reset_is_one_whose_reset_is_never_true),
    (StepsAreOthers, testing.steps_are_the_sequence),
    (StepsHaveNoGradient, testing.steps_are_the_sequence),
    (ForgetsBetweenSequences, testing.a_sequence_may_be_cut_anywhere),
    (CountsFromTheEnd, testing.padding_on_the_right_changes_nothing_before_it),
    (MultipliesAtResets, testing.an_episode_forgets_a_simulation_that_broke),
    (Memoryless, testing.the_past_matters_long_after),
    (HasAnUnusedWeight, testing.every_parameter_gets_a_gradient),
]


def test_every_law_is_broken_by_one_of_them():
    assert {law for _, law in BROKEN} == set(LAWS)


@pytest.mark.parametrize(("mixer", "law"), BROKEN, ids=lambda value: value.__name__)
def test_a_broken_mixer_is_caught_by_the_law_that_it_breaks(mixer, law):
    broken = f"^{mixer.__name__} breaks the law that {law.__name__.replace('_', ' ')}: [^\n]+$"
    with pytest.raises(AssertionError, match=broken):
        check_backbone(mixer)


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (ReturnsNoState, "forward returns a Tensor and not two, the outputs and the state"),
        (IsNarrow, r"the output of forward for x of shape \(3, 4, 16\) has the shape \(3, 4, 15\)"),
        (KeepsAList, "the initial state is a list; a tensor or a nested tuple of tensors is needed"),
        (FeaturesFirst, r"the initial state of 3 rows has a tensor of shape \(16, 3\); the batch comes first"),
        (GrowingState, r"the state after forward is float64\[3, 32\], but the initial state is float64\[3, 16\]"),
    ],
)
def test_what_has_the_wrong_shape_is_said(mixer, expected):
    with pytest.raises(AssertionError, match=f"breaks the law that outputs and states have their shapes: {expected}"):
        check_backbone(mixer)


class DropsInputs(Leaky):
    """``rate`` is no dropout that anybody could know of, as ``dropout`` is."""

    def __init__(self, d_model: int, rate: float = 0.3):
        super().__init__(d_model)
        self.drop = nn.Dropout(rate)

    def forward(self, x, state=None, reset=None):
        return super().forward(self.drop(x), state, reset)


class DropsDeclared(DropsInputs):
    def __init__(self, d_model: int, input_dropout: float = 0.3):
        super().__init__(d_model, input_dropout)


class NormalisesTheBatch(Leaky):
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x, state=None, reset=None):
        return super().forward(self.norm(x.mT).mT, state, reset)


@pytest.mark.parametrize("mixer", [DropsInputs, NormalisesTheBatch])
def test_what_is_another_function_in_training_mode_is_caught(mixer):
    with pytest.raises(
        AssertionError, match=rf"^{mixer.__name__} breaks the law .* \(float32, seed 0, in training mode"
    ):
        check_backbone(mixer)


def test_an_option_for_dropout_is_no_fault():
    check_backbone(DropsDeclared)
    check_backbone("mingru", dropout=0.5)


@pytest.mark.parametrize("backbone", [Leaky, "mingru", BACKBONES["transformer"]])
def test_a_backbone_that_is_right_passes_and_leaves_the_random_numbers_alone(backbone):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_backbone(backbone, 8, 1)
    assert torch.equal(torch.rand(3), expected)


class PytorchsCell(Mixer):
    """An LSTM as PyTorch starts it: its gates are half open."""

    def __init__(self, d_model: int):
        super().__init__()
        self.cell = nn.LSTMCell(d_model, d_model)

    def initial_state(self, batch_size):
        return tuple(self.cell.weight_hh.new_zeros(2, batch_size, self.cell.hidden_size))

    def forward(self, x, state=None, reset=None):
        h, c = self.initial_state(len(x)) if state is None else state
        outputs = []
        for t in range(x.shape[1]):
            if reset is not None:
                h, c = (part.masked_fill(reset[:, t, None], 0) for part in (h, c))
            h, c = self.cell(x[:, t], (h, c))
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


@pytest.mark.parametrize(("backbone", "options"), [(PytorchsCell, {}), ("mingru", {"memory_span": 0.0})])
def test_a_memory_may_fade_as_gates_that_begin_half_open_do(backbone, options):
    for seed in range(testing.SEEDS):
        for dtype in testing.TOLERANCE:
            check_law(testing.the_past_matters_long_after, backbone, dtype, seed, **options)


class SeesTwelveSteps(BACKBONES["transformer"]):
    """No option says so, as ``window`` would."""

    def __init__(self, d_model: int):
        super().__init__(d_model, window=12)


def test_a_memory_that_ends_sooner_is_caught():
    with pytest.raises(AssertionError, match=r"changes the output 23 steps later by 0\.0e\+00 \(float64, seed 0\)$"):
        check_law(testing.the_past_matters_long_after, SeesTwelveSteps)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_laws_have_gradients_where_the_caller_has_none(off):
    with off():
        check_law(testing.steps_are_the_sequence, Leaky)
        assert not torch.is_grad_enabled()


def test_the_message_says_what_was_compared_and_by_how_much_it_differs():
    expected = (
        r"^IgnoresResets breaks the law that an episode is blind to the one before: the outputs of an episode after "
        r"another and alone differ by up to \d\S* \(float64, seed 0\)$"
    )
    with pytest.raises(AssertionError, match=expected):
        check_backbone(IgnoresResets)


def test_an_exception_is_named_and_is_the_cause():
    class Fails(Leaky):
        def step(self, x, state, reset=None):
            raise KeyError("no\nstep")

    with pytest.raises(AssertionError, match=r"^Fails breaks the law that .*: it raised KeyError: 'no\\nstep' \(") as e:
        check_backbone(Fails)
    assert isinstance(e.value.__cause__, KeyError)


def test_a_wrong_name_or_option_is_the_error_that_it_always_is():
    with pytest.raises(BackboneError, match="did you mean mingru"):
        check_backbone("mingrus")
    with pytest.raises(BackboneError, match="Leaky has no option 'slowest'"):
        check_backbone(Leaky, slowest=4.0)
