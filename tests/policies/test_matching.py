"""Backbones of one size: within 2 % of the parameters that were asked for, at a natural width."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toy import TINY, toy_episodes
from unroll.agents import DecisionAgent, schemas
from unroll.commands import train
from unroll.configs import BackboneConfig, load_config
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import BackboneError
from unroll.policies import backbones
from unroll.policies.actor_critic import fill_options
from unroll.policies.backbones import BACKBONES, make_backbone, match_parameters, options_of
from unroll.policies.backbones.matching import GAP, count_parameters, missed

every_backbone = pytest.mark.parametrize("name", BACKBONES)


def size(name, d_model, n_layers, options):
    return sum(parameter.numel() for parameter in make_backbone(name, d_model, n_layers, **options).parameters())


@every_backbone
@settings(max_examples=8, deadline=None)
@given(parameters=st.integers(20_000, 2_000_000), n_layers=st.integers(1, 4))
def test_every_backbone_can_have_any_number_of_parameters(name, parameters, n_layers):
    if "mlp_ratio" not in options_of(name):  # the width alone has steps of more than 4 % in small sizes
        assume(parameters > 60_000 * n_layers)
    d_model, options = match_parameters(name, parameters, n_layers)
    assert abs(size(name, d_model, n_layers, options) - parameters) <= 0.02 * parameters
    assert set(options) <= {"mlp_ratio"}
    if parameters > 50_000 * n_layers and "mlp_ratio" in options:
        assert abs(options["mlp_ratio"] / options_of(name)["mlp_ratio"] - 1) < 0.2


@every_backbone
def test_the_width_is_the_one_that_comes_nearest_by_itself(name):
    def distance(d_model):
        try:
            return abs(count_parameters(name, d_model, 2, {}) - 120_000)
        except BackboneError:
            return float("inf")

    d_model, _ = match_parameters(name, 120_000, 2)
    assert distance(d_model) == min(map(distance, range(1, 2 * d_model)))


@every_backbone
def test_the_size_of_a_plain_width_gives_that_width_and_no_option(name):
    assert match_parameters(name, size(name, 128, 3, {})) == (128, {})


@every_backbone
def test_in_a_policy_of_ppo_all_backbones_are_comparable_to_each(name):
    """There the width is all that can be chosen, so that a number is missed by some."""
    parameters = count_parameters(name, 64, 1, fill_options(name, {}))
    for other in BACKBONES:
        options = fill_options(other, {})
        d_model, matched = match_parameters(other, parameters, 1, **options)
        assert matched == options
        assert abs(count_parameters(other, d_model, 1, options) - parameters) <= 0.1 * parameters


def test_by_how_much_a_number_is_missed_is_said_where_it_is_not_close():
    assert missed(1000, 1020) == missed(1000, 980) == ""
    assert missed(12_800, 12_480) == "12,480 parameters, 2.5% fewer than 12,800"
    assert missed(1000, 1100) == "1,100 parameters, 10.0% more than 1,000"


@pytest.mark.parametrize("parameters", ["5", None])
def test_what_is_no_number_of_parameters_is_one_line(parameters):
    with pytest.raises(BackboneError, match=f"^match_parameters is a number, not {parameters!r}$"):
        match_parameters("mingru", parameters)


def test_options_that_are_given_stay():
    d_model, options = match_parameters("mingru", 200_000, expansion=2.0, mlp_ratio=0.0)
    assert options == {"expansion": 2.0, "mlp_ratio": 0.0}
    assert abs(size("mingru", d_model, 3, options) - 200_000) <= 4_000


def test_a_size_that_cannot_be_reached_is_an_error_with_the_nearest_that_can():
    with pytest.raises(BackboneError, match=r"transformer, n_layers 3: cannot have 500 .*: 1,051 at d_model 8$"):
        match_parameters("transformer", 500)
    with pytest.raises(BackboneError, match=r"cannot have 50,000 .*: [\d,]+ at d_model \d+, [\d,]+ at d_model \d+$"):
        match_parameters("transformer", 50_000, mlp_ratio=4.0, n_heads=16)
    for parameters in (-5, 10**30):
        with pytest.raises(BackboneError, match="match_parameters must be from 1 to"):
            match_parameters("mingru", parameters)


@pytest.mark.parametrize(("name", "options"), [("mingruu", {}), ("gru", {"foo": 1}), ("transformer", {"n_heads": 0})])
def test_a_mistake_is_found_without_trying_ever_more_widths(name, options, monkeypatch):
    tried, make = [], backbones.make_backbone
    monkeypatch.setattr(backbones, "make_backbone", lambda *args, **kwargs: (tried.append(args), make(*args, **kwargs)))
    with pytest.raises(BackboneError, match=r"mingruu|foo|n_heads must be"):
        match_parameters(name, 100_000, **options)
    assert len(tried) <= GAP


def test_train_shows_what_came_out_of_matching_and_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(20), "toy.hdf5")
    arguments = ["--dataset", "toy.hdf5", *TINY, "--evaluation.episodes", "2", "--device", "cpu"]
    matched = [*arguments, "--steps", "2", "--backbone.match_parameters", "5000"]
    assert train.main([*matched, "--run_dir", "one"]) == 0
    d_model, options = match_parameters("mingru", 5000, 1)
    assert f"mingru (d_model {d_model}, n_layers 1, mlp_ratio {options['mlp_ratio']})" in capsys.readouterr().out
    backbone = load_config(["--config", "one/config.yaml"], schemas()).backbone
    assert backbone == BackboneConfig(d_model=d_model, n_layers=1, options=options)
    assert train.main(["--config", "one/config.yaml", "--run_dir", "two"]) == 0
    assert train.main(["--resume", "true", "--run_dir", "one", "--steps", "3"]) == 0
    one, two = (DecisionAgent.load(f"{run}/checkpoints/step_00000002").policy for run in ("one", "two"))
    assert sum(parameter.numel() for parameter in one.backbone.parameters()) == size("mingru", d_model, 1, options)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

    assert train.main([*arguments, "--backbone.name", "transformer", "--backbone.match_parameters", "9"]) == 2
    assert "cannot have 9 parameters; the nearest: 361 at d_model 8" in capsys.readouterr().err
