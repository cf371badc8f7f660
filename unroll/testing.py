"""Check a backbone of your own against the laws that policies and agents rely on.

    from unroll.testing import check_backbone

    check_backbone(MyMixer)

A law is a function of a ``Case``: a backbone with random weights, and a random sequence with episodes in it. ``LAWS``
holds all of them, and tests/laws/test_laws.py runs each over every registered backbone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unroll.errors import one_line
from unroll.policies.backbones import Backbone, State, map_state, options_of, select_rows
from unroll.policies.backbones.contract import misshapen, own_part
from unroll.policies.backbones.registry import BackboneClass, build_backbone

__all__ = ["LAWS", "WHILE_TRAINING", "Case", "check_backbone", "check_law"]

# Two results are the same if they differ by at most this, or by this share of their value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}

SEEDS = 8
LONGEST = 20

# After so many steps a memory must still show what it saw first.
LONG_AFTER = 29

# The change that a memory must show at least. It lies far above float64's rounding, and far below 1e-10, which gates
# that begin half open leave.
SHOWN = 1e-13

# The window of a backbone that has this option: shorter than most of the sequences, so that it becomes full.
WINDOW = 5


@dataclasses.dataclass
class Case:
    """A backbone with random weights and a random sequence for it.

    x is [B, T, d_model], reset [B, T] is true at an episode's first step. ``random`` is where a law draws from.
    """

    backbone: Backbone
    x: Tensor
    reset: Tensor
    random: torch.Generator
    reach: int = LONG_AFTER
    """For how many steps the past must matter."""

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def draw(self, *shape: int) -> Tensor:
        """Draw normal numbers [*shape, d_model]."""
        return torch.randn(*shape, self.x.shape[-1], dtype=self.dtype, generator=self.random).to(self.x.device)

    def draw_integer(self, low: int, high: int) -> int:
        """Draw an integer from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def run_steps(self, x: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """Run the backbone over x [B, T, d_model], one step after the other."""
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.backbone.step(x[:, t], state, reset[:, t])
            outputs.append(y)
        return torch.stack(outputs, 1), state


class _Broken(Exception):
    """A law does not hold; the message says what was compared and by how much it differs."""


def check_backbone(
    backbone: str | BackboneClass, d_model: int = 16, n_layers: int = 2, device: str = "cpu", **options: Any
) -> None:
    """Check that a backbone obeys all laws, on several random sequences in float64 and float32.

    Those of ``WHILE_TRAINING`` it must also obey in training mode.

    ``backbone`` is a registered name, ``module:Class`` of an imported module, or a class that derives from Mixer or
    Backbone. A Mixer is checked inside the residual stack. A backbone with the option ``window`` gets a short one
    unless ``options`` name it.

    Raises:
        AssertionError: A law is broken. The message says which, what was compared and the largest difference.
        BackboneError: There is no such backbone, or it has no such option.
    """
    for law in LAWS:
        for seed in range(SEEDS):
            for dtype in TOLERANCE:
                check_law(law, backbone, dtype, seed, d_model, n_layers, device, **options)
    for law in WHILE_TRAINING:
        for seed in range(SEEDS):
            check_law(law, backbone, torch.float32, seed, d_model, n_layers, device, training=True, **options)


def check_law(
    law: Law,
    backbone: str | BackboneClass,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    d_model: int = 16,
    n_layers: int = 2,
    device: str = "cpu",
    training: bool = False,
    **options: Any,
) -> None:
    """Check that a backbone obeys one law on the random case of ``seed``; the global random state stays as it is.

    ``training``: in training mode, with options for dropout at 0.

    Raises:
        AssertionError: The law is broken, or the backbone raised an exception, which is the cause of this one.
    """
    # the laws compare gradients, which a caller may have turned off
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        if training:
            options |= _without_dropout(backbone)
        case = draw_case(backbone, dtype, seed, d_model, n_layers, device, **options)
        case.backbone.train(training)
        try:
            law(case)
            return
        except _Broken as error:
            how = str(error)
            cause = None
        except Exception as error:
            how = f"it raised {type(error).__name__}: {one_line(error)}"
            cause = error

    name = backbone if isinstance(backbone, str) else backbone.__name__
    type_name = str(dtype).removeprefix("torch.")
    broken = law.__name__.replace("_", " ")
    where = f"{type_name}, seed {seed}{', in training mode' if training else ''}"
    raise AssertionError(f"{name} breaks the law that {broken}: {how} ({where})") from cause


def _without_dropout(backbone: str | BackboneClass) -> dict[str, Any]:
    """The options for dropout, each at 0."""
    numbers = {name: value for name, value in options_of(backbone).items() if isinstance(value, int | float)}
    return {name: type(value)(0) for name, value in numbers.items() if "dropout" in name}


def draw_case(
    backbone: str | BackboneClass,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    d_model: int = 16,
    n_layers: int = 2,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """Draw weights, a sequence of 1 to ``LONGEST`` steps for 1 to 4 rows, and where its episodes begin.

    All is drawn on the CPU, so that a case is the same on every device. This seeds PyTorch's global random numbers.
    """
    if "window" in options_of(backbone):
        options.setdefault("window", WINDOW)
    torch.manual_seed(seed)
    made = build_backbone(backbone, d_model, n_layers, **options).to(device, dtype).eval()

    reach = LONG_AFTER
    if "window" in options:
        # a query sees window - 1 earlier steps, and each layer sees that much further
        reach = min(reach, n_layers * (options["window"] - 1))

    # a third of all cases has no reset, a third has many
    random = torch.Generator().manual_seed(seed)
    batch = int(torch.randint(1, 5, (), generator=random))
    time = int(torch.randint(1, LONGEST + 1, (), generator=random))
    often = (0.0, 0.1, 0.5)[seed % 3]
    x = torch.randn(batch, time, d_model, dtype=dtype, generator=random)
    reset = torch.rand(batch, time, generator=random) < often
    return Case(made, x.to(device), reset.to(device), random, reach)


# ---- the laws


def outputs_and_states_have_their_shapes(case: Case) -> None:
    """Outputs have the shape of the inputs. A state has the batch first, and always the same shapes and types."""
    problem = misshapen(own_part(case.backbone), case.draw(3, 4))
    if problem:
        raise _Broken(problem)


def a_state_is_never_written_to(case: Case) -> None:
    """A state that was given stays as it is, so that several futures can begin from it."""
    x = case.draw(3)
    several = case.draw(3, 4)
    some = torch.tensor([True, False, False], device=case.x.device)
    with torch.no_grad():
        _, running = case.backbone(case.draw(3, 2 * WINDOW))
        for state in (case.backbone.initial_state(3), running):
            before = map_state(torch.clone, state)
            for reset in (None, some):
                y, after = case.backbone.step(x, state, reset)
                # an answer must not be written to by what follows either
                kept = map_state(torch.clone, after)
                case.backbone.step(case.draw(3), after, reset)
                case.backbone(several, after, None)
                case.backbone(several, state, None)
                _require_same("a state before and after it was used", before, state, 0.0)
                _require_same("a state before and after it was used", kept, after, 0.0)

                z, _ = case.backbone.step(x, state, reset)
                _require_same("the outputs of one step from one state, twice", y, z, case.tolerance)


def steps_are_the_sequence(case: Case) -> None:
    """T calls of ``step`` give what one ``forward`` gives: outputs, final state and gradients."""
    x = case.x.requires_grad_()
    y, final = case.backbone(x, None, case.reset)
    z, last = case.run_steps(x, case.backbone.initial_state(len(x)), case.reset)

    _require_same("the outputs of steps and of the sequence", z, y, case.tolerance)
    _require_same_future(case, "the states after steps and after the sequence", last, final, len(case.x))
    of_steps = _gradients(z.square().sum(), [x])
    of_sequence = _gradients(y.square().sum(), [x])
    _require_same("the inputs' gradients through steps and the sequence", of_steps, of_sequence, case.tolerance)


def a_sequence_may_be_cut_anywhere(case: Case) -> None:
    """Two pieces of a sequence, the state handed over between them, give what the whole sequence gives."""
    y, final = case.backbone(case.x, None, case.reset)

    cut = case.draw_integer(0, case.x.shape[1])
    state = case.backbone.initial_state(len(case.x))
    outputs = []
    for piece in (slice(0, cut), slice(cut, None)):
        if case.x[:, piece].shape[1]:
            output, state = case.backbone(case.x[:, piece], state, case.reset[:, piece])
            outputs.append(output)

    joined = torch.cat(outputs, 1)
    _require_same(f"the outputs of a sequence cut at step {cut} and whole", joined, y, case.tolerance)
    _require_same_future(case, f"the states after a sequence cut at step {cut} and whole", state, final, len(case.x))


def no_reset_is_a_reset_that_is_never_true(case: Case) -> None:
    """No state and no reset mean the initial state and a reset that is never true."""
    y, final = case.backbone(case.x)
    never = torch.zeros_like(case.reset)
    z, also = case.backbone(case.x, case.backbone.initial_state(len(case.x)), never)

    _require_same("the outputs without a reset and with one that is never true", y, z, case.tolerance)
    _require_same_future(case, "the states without a reset and with one that is never true", final, also, len(case.x))


def a_step_without_a_reset_is_one_whose_reset_is_never_true(case: Case) -> None:
    """``step`` without a reset is ``step`` with a reset that is true in no row."""
    _, state = case.backbone(case.draw(3, 4))
    x = case.draw(3)
    y, after = case.backbone.step(x, state)
    z, also = case.backbone.step(x, state, torch.zeros(3, dtype=torch.bool, device=x.device))

    _require_same("the outputs of a step without a reset and with one", y, z, case.tolerance)
    _require_same_future(case, "the states after a step without a reset and with one", after, also, 3)


def an_episode_is_blind_to_the_one_before(case: Case) -> None:
    """Steps after a reset are computed as if nothing had come before: outputs, final state and gradients."""
    batch, time, _ = case.x.shape
    start = case.draw_integer(0, time - 1)
    case.reset[:, start] = True
    x = case.x.requires_grad_()
    _, before = case.backbone(case.draw(batch, 7))

    # values: the same piece after another episode and alone
    y, final = case.backbone(x, before, case.reset)
    alone, also = case.backbone(x[:, start:], None, case.reset[:, start:])
    _require_same("the outputs of an episode after another and alone", y[:, start:], alone, case.tolerance)
    _require_same_future(case, "the states after an episode that follows another and alone", final, also, len(case.x))

    # gradients: exactly 0 before the reset
    (gradient,) = _gradients(y[:, start:].square().sum(), [x])
    nothing = torch.zeros_like(gradient[:, :start])
    _require_same("the gradients of the steps before a reset and 0", gradient[:, :start], nothing, 0.0)
    if not gradient.isfinite().all():
        raise _Broken("a gradient of an episode is not finite")


def an_episode_forgets_a_simulation_that_broke(case: Case) -> None:
    """After a reset a row goes on as if no NaN, infinity or huge number had ever been seen."""
    time = 8
    start = 4
    resets = torch.zeros(3, time, dtype=torch.bool, device=case.x.device)
    resets[1, start] = True

    # row 1 breaks at step 2 and begins a new episode at step 4; then steps and one sequence go on from there
    for broken in (torch.nan, torch.inf, 1e38):
        x = case.draw(3, time)
        x[1, 2] = broken
        with torch.no_grad():
            _, before = case.run_steps(x[:, :start], case.backbone.initial_state(3), resets[:, :start])
            y, last = case.run_steps(x[:, start:], before, resets[:, start:])
            z, final = case.backbone(x[:, start:], before, resets[:, start:])
            alone, _ = case.backbone(x[1:2, start:])

        what = f"after a step with {broken} and a reset"
        _require_same(f"the outputs {what}, of steps and alone", y[1], alone[0], case.tolerance)
        _require_same(f"the outputs {what}, of a sequence and alone", z[1], alone[0], case.tolerance)
        _require_same(f"the other rows' outputs {what}, of steps and of a sequence", y, z, case.tolerance)
        for state in (last, final):
            if not all(part.isfinite().all() for part in _tensors(state)):
                raise _Broken(f"the state {what} is not finite")


def the_future_does_not_leak(case: Case) -> None:
    """No output depends on a later input, and every output depends on its own."""
    t = case.draw_integer(0, case.x.shape[1] - 1)
    changed = case.x.clone()
    # one channel alone: a norm would hide a shift of all
    changed[:, t, 0] += 3
    y, _ = case.backbone(case.x, None, case.reset)
    z, _ = case.backbone(changed, None, case.reset)

    what = f"the outputs before step {t} with one and another input at step {t}"
    _require_same(what, y[:, :t], z[:, :t], case.tolerance)
    if _difference(y[:, t], z[:, t]) < 1e-6:
        raise _Broken(f"the output of step {t} stays the same when its input changes")


def the_past_matters_long_after(case: Case) -> None:
    """A change of the first input changes every later output: 29 steps later too, or as far as attention reaches.

    Only float64 shows it: float32 rounds away what gates that begin half open leave.
    """
    if case.dtype != torch.float64:
        return
    x = case.draw(2, LONG_AFTER + 1)
    changed = x.clone()
    changed[:, 0, 0] += 5
    with torch.no_grad():
        y, _ = case.backbone(x)
        z, _ = case.backbone(changed)

    # the largest change of each step's outputs
    differences = (y - z).abs().amax((0, 2))
    for steps, difference in enumerate(differences[: case.reach + 1].tolist()):
        if not difference > SHOWN:
            raise _Broken(f"a change of the first input changes the output {steps} steps later by {difference:.1e}")


def rows_of_the_batch_are_independent(case: Case) -> None:
    """Some rows of a batch, in another order, are computed as they are among all."""
    # all rows but one, shuffled
    batch = len(case.x)
    rows = torch.randperm(batch, generator=case.random)[: max(1, batch - 1)].to(case.x.device)
    _, state = case.backbone(case.draw(batch, 3))
    y, final = case.backbone(case.x, state, case.reset)
    z, also = case.backbone(case.x[rows], select_rows(state, rows), case.reset[rows])

    _require_same("the outputs of rows among others and by themselves", y[rows], z, case.tolerance)
    _require_same_future(
        case, "the states of rows among others and by themselves", select_rows(final, rows), also, len(rows)
    )


def padding_on_the_right_changes_nothing_before_it(case: Case) -> None:
    """Steps that are added at the end of a sequence change no output before them, and no gradient."""
    x = case.draw(2, 12)
    padding = torch.full_like(case.draw(2, 6), 1e3)
    y, _ = case.backbone(x)
    padded, _ = case.backbone(torch.cat([x, padding], 1))
    z = padded[:, : x.shape[1]]
    _require_same("the outputs with and without padding", y, z, case.tolerance)

    weights = [weight for weight in case.backbone.parameters() if weight.requires_grad]
    plain = _gradients(y.square().sum(), weights)
    with_padding = _gradients(z.square().sum(), weights)
    _require_same("the weights' gradients with and without padding", plain, with_padding, case.tolerance)


def every_parameter_gets_a_gradient(case: Case) -> None:
    """The gradient of every parameter is finite and not zero."""
    y, _ = case.backbone(case.draw(2, 9), case.backbone.initial_state(2))
    weights = {name: weight for name, weight in case.backbone.named_parameters() if weight.requires_grad}
    gradients = _gradients(y.cos().sum(), list(weights.values()))
    for name, gradient in zip(weights, gradients, strict=True):
        if not gradient.isfinite().all():
            raise _Broken(f"the gradient of {name} is not finite")
        if not gradient.any():
            raise _Broken(f"the gradient of {name} is zero")


Law = Callable[[Case], None]

# The first ones say most plainly what is wrong with a backbone that breaks several.
LAWS: tuple[Law, ...] = (
    outputs_and_states_have_their_shapes,
    a_state_is_never_written_to,
    the_future_does_not_leak,
    rows_of_the_batch_are_independent,
    an_episode_is_blind_to_the_one_before,
    no_reset_is_a_reset_that_is_never_true,
    a_step_without_a_reset_is_one_whose_reset_is_never_true,
    steps_are_the_sequence,
    a_sequence_may_be_cut_anywhere,
    padding_on_the_right_changes_nothing_before_it,
    an_episode_forgets_a_simulation_that_broke,
    the_past_matters_long_after,
    every_parameter_gets_a_gradient,
)

# PPO learns in training mode from what it did in the other one. A batch norm or a dropout inside makes that another
# function, for which PPO has no ratio.
WHILE_TRAINING: tuple[Law, ...] = (
    the_future_does_not_leak,
    rows_of_the_batch_are_independent,
    steps_are_the_sequence,
)


# ---- comparing


def _require_same(what: str, one: State, other: State, tolerance: float) -> None:
    """Raise _Broken unless two tensors, or all tensors of two states, are the same within the tolerance."""
    largest = 0.0
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        if a.shape != b.shape:
            raise _Broken(f"{what} have the shapes {tuple(a.shape)} and {tuple(b.shape)}")
        # in float64, also counters and masks; NaN is within no tolerance
        a = a.detach().double()
        b = b.detach().double()
        if not ((a - b).abs() <= tolerance * (1 + b.abs())).all():
            largest = max(largest, _difference(a, b))
    if largest:
        raise _Broken(f"{what} differ by up to {largest:.2g}")


def _require_same_future(case: Case, what: str, one: State, other: State, batch: int) -> None:
    """Raise _Broken unless the same outputs follow from two states of ``batch`` rows.

    Their numbers need not be the same: a cache may hold anything in the slots that are not in use.
    """
    x = case.draw(batch, WINDOW + 1)
    with torch.no_grad():
        y, _ = case.backbone(x, one)
        z, _ = case.backbone(x, other)
    _require_same(f"the outputs that follow from {what}", y, z, case.tolerance)


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, which is infinite where one is NaN."""
    difference = (a - b).abs().max().item()
    if math.isnan(difference):
        return math.inf
    return difference


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a loss, zeros for inputs that it does not depend on."""
    if not inputs:
        return ()
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def _tensors(state: State) -> list[Tensor]:
    """List the tensors of a state."""
    found: list[Tensor] = []

    def add(part: Tensor) -> Tensor:
        found.append(part)
        return part

    map_state(add, state)
    return found
