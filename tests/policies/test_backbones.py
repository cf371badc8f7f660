"""The registry: names, options and their errors."""

import re

import numpy as np
import pytest
import torch

from unroll.commands.backbones import main
from unroll.errors import BackboneError
from unroll.policies.backbones import BACKBONES, Mixer, import_own, make_backbone, map_state, options_of
from unroll.policies.backbones.contract import layout
from unroll.policies.backbones.memoryless import Memoryless


def test_an_unknown_backbone_is_an_error_that_lists_those_that_exist():
    with pytest.raises(
        BackboneError, match=r"unknown backbone 'mingrus' \(did you mean mingru\?\); there are mingru, "
    ):
        make_backbone("mingrus")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_class_is_as_good_as_its_name(name):
    assert options_of(BACKBONES[name]) == options_of(name)
    by_class, by_name = (make_backbone(backbone, 16, 1).state_dict() for backbone in (BACKBONES[name], name))
    assert {key: value.shape for key, value in by_class.items()} == {k: v.shape for k, v in by_name.items()}


def test_a_class_that_is_no_backbone_is_an_error():
    with pytest.raises(BackboneError, match=r"^backbone Linear: Linear is neither a Mixer nor a Backbone"):
        make_backbone(torch.nn.Linear, 16, 1)
    with pytest.raises(BackboneError, match=r"^backbone Mixer: Mixer does not define forward, initial_state$"):
        make_backbone(Mixer, 16, 1)
    with pytest.raises(BackboneError, match=r"^backbone MinGRU has no option 'expnasion' \(did you mean expansion"):
        make_backbone(BACKBONES["mingru"], 16, 1, expnasion=2.0)


def test_the_control_without_memory_is_found_by_its_class_alone():
    name = "unroll.policies.backbones.memoryless:Memoryless"
    import_own(name)
    assert Memoryless not in BACKBONES.values()
    y, state = make_backbone(name, 16, 2)(torch.randn(3, 5, 16))
    assert y.shape == (3, 5, 16)
    assert [part.shape for part in state] == [(3, 0), (3, 0)]


@pytest.mark.parametrize("name", BACKBONES)
def test_an_unknown_option_is_an_error_that_lists_the_options_with_their_defaults(name):
    with pytest.raises(BackboneError, match=rf"backbone {name} has no option 'foo'; it has .*dropout=0.0"):
        make_backbone(name, 16, 1, foo=1)


@pytest.mark.parametrize("value", ["2", None, True, [2]])
def test_an_option_of_the_wrong_type_is_an_error(value):
    with pytest.raises(BackboneError, match="option expansion is a finite float"):
        make_backbone("mingru", 16, 1, expansion=value)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [0, -1, 16.0, "16", True, None])
def test_a_width_or_depth_that_is_none_is_an_error(name, size):
    with pytest.raises(BackboneError, match=f"backbone {name}: d_model is an int from 1 to 1,048,576, not {size!r}"):
        make_backbone(name, size, 1)
    with pytest.raises(BackboneError, match=f"backbone {name}: n_layers is an int from 1 to 1,024, not {size!r}"):
        make_backbone(name, 16, size)


def test_numbers_of_numpy_are_numbers():
    width, layers, ratio = np.array([16, 2, 3])
    made = make_backbone("mingru", width, layers, conv=ratio, expansion=np.float32(1.5), highway=np.bool_(True))
    like = make_backbone("mingru", 16, 2, conv=3, expansion=1.5, highway=True)
    assert [part.shape for part in made.parameters()] == [part.shape for part in like.parameters()]
    assert type(made.d_model) is int
    with pytest.raises(BackboneError, match=r"d_model is an int from 1 to 1,048,576, not 16\.0$"):
        make_backbone("mingru", np.float64(16), 1)


@pytest.mark.parametrize("name", [None, 3, torch.nn.Sequential(torch.nn.ReLU())])
def test_what_is_no_name_is_one_line(name):
    with pytest.raises(BackboneError, match=r"^a backbone is a name, module:Class or a class, not [^\n]+$"):
        make_backbone(name, 16, 1)


def test_a_width_that_the_heads_do_not_divide_is_an_error():
    with pytest.raises(BackboneError, match="d_model 20 must be divisible"):
        make_backbone("transformer", 20, 1, n_heads=4)
    with pytest.raises(BackboneError, match="window must be at least 1"):
        make_backbone("transformer", 16, 1, window=0)


@pytest.mark.parametrize("name", [name for name, cls in BACKBONES.items() if issubclass(cls, Mixer)])
def test_options_reach_the_mixer_and_the_stack(name):
    assert {"dropout", "mlp_ratio", "activation"} < set(options_of(name))
    small, large = (make_backbone(name, 16, 1, mlp_ratio=ratio) for ratio in (0.0, 4.0))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())
    y, _ = large(torch.randn(2, 3, 16))
    assert y.shape == (2, 3, 16)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("reset", [None, torch.rand(3, 40) < 0.1], ids=["one episode", "many"])
def test_a_state_keeps_nothing_but_itself_in_memory(name, reset):
    backbone = make_backbone(name, 16, 2, **({"window": 5} if "window" in options_of(name) else {}))
    _, state = backbone(torch.randn(3, 40, 16), None, reset)
    map_state(
        lambda part: pytest.fail(f"{part.shape}") if part.untyped_storage().nbytes() > part.nbytes else part, state
    )


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reset_of_another_shape_or_type_is_one_line_in_all_of_them(name, dtype):
    backbone, x = make_backbone(name, 16, 1).to(dtype), torch.randn(3, 5, 16, dtype=dtype)
    never = torch.zeros(3, 5, dtype=torch.bool)
    for wrong in (never[:1], never[:, :1], never.T, torch.zeros(4, 5, dtype=torch.bool), never.byte()):
        with pytest.raises(
            ValueError, match=r"^reset \[B, T\] is bool and \(3, 5\) here, not torch\.\w+ and \(\d, \d\)$"
        ):
            backbone(x, None, wrong)
    with pytest.raises(ValueError, match=r"^the state before \[B, …\] is \(3\b.* here, not \(4\b"):
        backbone(x, backbone.initial_state(4), never)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_row_of_a_reset_or_a_state_is_not_taken_for_all_in_a_step(name):
    backbone, x = make_backbone(name, 16, 2), torch.randn(3, 16)
    state = backbone.initial_state(3)
    never = torch.zeros(3, dtype=torch.bool)
    for wrong in (never[:1], never[:, None], never[None], never.float(), never.byte()):
        with pytest.raises(ValueError, match=r"^reset \[B\] is bool and \(3,\) here, not torch\.\w+ and \(\d,.*\)$"):
            backbone.step(x, state, wrong)
    for n in (1, 4):
        with pytest.raises(ValueError, match=rf"^the state before \[B, …\] has {n} rows, the step 3$"):
            backbone.step(x, backbone.initial_state(n), never)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_batch_without_rows_may_have_resets(name):
    backbone = make_backbone(name, 16, 1)
    y, state = backbone(torch.randn(0, 5, 16), None, torch.zeros(0, 5, dtype=torch.bool))
    assert y.shape == (0, 5, 16)
    assert layout(state) == layout(backbone.initial_state(0))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_who_writes_into_an_output_leaves_the_state_alone(name, steps):
    plain = {option: value for option, value in {"plain": True, "mlp_ratio": 0.0}.items() if option in options_of(name)}
    backbone = make_backbone(name, 16, 1, **plain)
    with torch.no_grad():
        if steps is None:
            y, state = backbone.step(torch.randn(2, 16), backbone.initial_state(2))
        else:
            y, state = backbone(torch.randn(2, steps, 16))
        before = map_state(torch.clone, state)
        y.fill_(7)
    map_state(torch.testing.assert_close, state, before)


def test_the_table_shows_every_backbone_measured(capsys):
    assert main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = {cells[0]: cells[1:] for cells in table}
    assert list(rows)[:2] == ["name", "---"]
    for name in BACKBONES:
        _, parameters, state, microseconds, products, options = rows[f"`{name}`"]
        assert int(parameters.replace(",", "")) == sum(p.numel() for p in make_backbone(name).parameters())
        assert min(int(number.replace(",", "")) for number in (state, microseconds, products)) > 0
        assert all(f"{option}={default}" in options for option, default in options_of(name).items())
    assert rows["`mingru`"][2:5:2] == ["1,536", "540,672"]
    assert rows["`transformer`"][2:5:2] == ["193,560", "638,976"]  # with the products of attention


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_names_its_paper(name):
    assert re.search(r" (19|20)\d\d", BACKBONES[name].paper)


@pytest.mark.parametrize("name", ["mingrus", "nowhere_at_all:Mine", "a:b:c"])
def test_a_wrong_name_is_one_line_for_the_table(name, capsys):
    assert main([name]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
