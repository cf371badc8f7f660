"""A backbone of the user's own: the command line may name code to import, a file never."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toy import TINY, toy_episodes
from unroll.commands import evaluate, train
from unroll.commands import record as collect
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import BackboneError
from unroll.own import says
from unroll.policies.backbones import import_own, make_backbone, match_parameters, options_of
from unroll.policies.backbones.matching import count_parameters
from unroll.policies.backbones.registry import build_backbone

ROOT = Path(__file__).parents[2]
MODULE = """
from typing import Literal

from torch import nn

from unroll.policies.backbones import Backbone, Mixer
from unroll.policies.backbones.mingru import MinGRU


class Mine(MinGRU):
    def __init__(self, d_model: int, size: float = 1, gate: Literal["soft", "hard"] = "soft", *, skip: bool = False):
        super().__init__(d_model, size)


class Headed(Mine):
    def __init__(self, d_model: int, heads: "as many as you like" = 4):
        super().__init__(d_model)
        self.attention = nn.MultiheadAttention(d_model, heads)


class Leaking(Mine):
    def forward(self, x, state=None, reset=None):
        return super().forward(x, state)


class Whole(Backbone):
    def __init__(self, d_model: int, n_layers: int, bias: bool = True):
        super().__init__()
        self.d_model, self.layer = d_model, nn.Linear(d_model, d_model, bias)

    def initial_state(self, batch_size):
        return ()

    def forward(self, x, state=None, reset=None):
        return self.layer(x), ()


class Unfinished(Mixer):
    def __init__(self, d_model: int):
        super().__init__()


class Demanding(Mine):
    def __init__(self, d_model: int, size: float):
        super().__init__(d_model)


class Greedy(Mine):
    def __init__(self, d_model: int, dropout: float = 0.5):
        super().__init__(d_model)


class Bare(Whole):
    def __init__(self, width: int = 3, **options):
        super().__init__(width, 1)


class ListState(Mine):
    def initial_state(self, batch_size):
        return [super().initial_state(batch_size)]


class BatchSecond(Mine):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size)[None]


class NoState(Mine):
    def forward(self, x, state=None, reset=None):
        return super().forward(x, state, reset)[0]


class Narrow(Mine):
    def forward(self, x, state=None, reset=None):
        y, state = super().forward(x, state, reset)
        return y[..., 1:], state


class OtherState(Mine):
    def forward(self, x, state=None, reset=None):
        y, state = super().forward(x, state, reset)
        return y, state[:, None]


class Raises(Mine):
    def forward(self, x, state=None, reset=None):
        return x @ x, state


class Draws(Mine):
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x, state=None, reset=None):
        return super().forward(self.norm(x.mT).mT + nn.functional.dropout(x), state, reset)


class Keeps(Mine):
    weights = None  # made in the first call, where its input is

    def forward(self, x, state=None, reset=None):
        if self.weights is None:
            self.weights = x.new_ones(x.shape[-1])
        return super().forward(x * self.weights, state, reset)


class ForGPU(Mine):
    def forward(self, x, state=None, reset=None):
        raise RuntimeError("Expected x.is_cuda() to be true")


class Plain:
    pass


number = 3
"""


def forget():
    sys.modules.pop("my_own", None)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "my_exit.py").write_text("raise SystemExit('bye\\nbye')")
    forget()
    yield
    forget()


@pytest.fixture
def dataset(tmp_path):
    write_hdf5(toy_episodes(20), tmp_path / "toy.hdf5")
    return ["--dataset", "toy.hdf5", *TINY, "--evaluation.episodes", "2", "--device", "cpu", "--steps", "2"]


def run(function, arguments, capsys):
    """The exit code and the last error."""
    try:
        code = function(arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) <= 1, error
    return code, error


def test_a_name_alone_imports_nothing():
    for function in (make_backbone, options_of, lambda name: match_parameters(name, 100_000)):
        with pytest.raises(
            BackboneError, match=r"my_own:Mine is not imported, and no file .*--backbone.name my_own:Mi"
        ):
            function("my_own:Mine")
    assert "my_own" not in sys.modules


def test_an_imported_one_is_a_backbone_like_any_other():
    import_own("my_own:Mine")
    assert list(options_of("my_own:Mine")) == ["size", "gate", "skip", "dropout", "mlp_ratio", "activation", "plain"]
    y, _ = make_backbone("my_own:Mine", 16, 2, size=0.5, gate="hard", skip=True)(torch.randn(2, 3, 16))
    assert y.shape == (2, 3, 16)
    assert options_of("my_own:Whole") == {"bias": True}
    assert make_backbone("my_own:Whole", 16, 1, bias=False)(torch.randn(2, 3, 16))[0].shape == (2, 3, 16)
    d_model, options = match_parameters("my_own:Whole", 10_100)
    assert (d_model, options) == (100, {})
    import_own("my_own:Headed")
    assert match_parameters("my_own:Headed", 10_000, 1)[0] % 4 == 0
    with pytest.raises(BackboneError, match="d_model 1: embed_dim must be divisible by num_heads"):
        count_parameters("my_own:Headed", 1, 1, {})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gate": "sotf"}, r"option gate is one of soft, hard, not 'sotf' \(did you mean soft\?\)$"),
        ({"gate": True}, "option gate is one of soft, hard, not True"),
        ({"size": "big"}, "option size is a finite float, not 'big'"),
        ({"skip": 1}, "option skip is a bool, not 1"),
        (
            {"gat": "soft"},
            r"no option 'gat' \(did you mean gate\?\); it has size=1, gate=soft, skip=False, dropout=0.0",
        ),
    ],
)
def test_a_wrong_option_is_one_line(options, expected):
    import_own("my_own:Mine")
    with pytest.raises(BackboneError, match=expected):
        make_backbone("my_own:Mine", 16, 1, **options)


WRONG = {
    "my_onw:Mine": "there is no module my_onw",
    "my_own.deeper:Mine": "there is no module my_own.deeper",
    "my_broken:Mine": "importing my_broken raised ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "my_exit:Mine": "importing my_exit raised SystemExit: bye bye",
    "my_own:Mime": "my_own has no class Mime (did you mean Mine?)",
    "my_own:number": "my_own has no class number",
    "my_own:Plain": "Plain is neither a Mixer nor a Backbone",
    "my_own:Unfinished": "Unfinished does not define forward, initial_state",
    "my_own:Demanding": "its constructor must take (d_model, options with defaults), not (d_model: int, size: float)",
    "my_own:Greedy": "dropout belongs to the stack",
    "my_own:Bare": "its constructor must take (d_model, n_layers, options with defaults)",
    "my_own:": "is module:Class",
    "../my_own:Mine": "is module:Class",
    ".my_own:Mine": "is module:Class",
}


SHAPES = {
    "ListState": "the initial state is a list; a tensor or a nested tuple of tensors is needed",
    "BatchSecond": "the initial state of 2 rows has a tensor of shape (1, 2, 16); the batch comes first",
    "NoState": "forward returns a Tensor and not two, the outputs and the state",
    "Narrow": "the output of forward for x of shape (2, 3, 16) has the shape (2, 3, 15)",
    "OtherState": "the state after forward is float32[2, 1, 16], but the initial state is float32[2, 16]",
    "Raises": "raised RuntimeError: Expected size",
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("agent", ["decision", "ppo"])
def test_wrong_outputs_and_states_are_one_line(name, agent, dataset, capsys):
    source = dataset
    if agent == "ppo":
        source = [
            "--agent",
            "ppo",
            "--env",
            "ToyBox-v0",
            "--steps",
            "32",
            "--n_steps",
            "16",
            "--backbone.d_model",
            "16",
        ]
    code, error = run(train.main, [*source, "--backbone.name", f"my_own:{name}"], capsys)
    assert code == 2
    assert f"unroll train: backbone my_own:{name}: {SHAPES[name]}" in error
    assert "unroll.testing.check_backbone" in error
    assert not Path("runs").exists()


def test_looking_at_shapes_leaves_random_numbers_and_statistics_alone():
    import_own("my_own:Draws")
    torch.manual_seed(0)
    made = build_backbone("my_own:Draws", 16, 2)
    expected = torch.rand(3)
    torch.manual_seed(0)
    looked_at = make_backbone("my_own:Draws", 16, 2)
    assert torch.equal(torch.rand(3), expected)
    assert looked_at.training
    for one, other in zip(made.state_dict().values(), looked_at.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_one_keeps_of_its_first_call_is_not_of_where_it_was_made():
    import_own("my_own:Keeps")
    made = make_backbone("my_own:Keeps", 16, 1).to("meta")
    assert made(torch.zeros(2, 3, 16, device="meta"))[0].shape == (2, 3, 16)


def test_one_whose_kernels_want_a_gpu_is_made():
    import_own("my_own:ForGPU")
    make_backbone("my_own:ForGPU", 16, 1)


@pytest.mark.parametrize("name", WRONG)
def test_a_class_that_is_no_backbone_is_one_line(name, dataset, capsys):
    code, error = run(train.main, [*dataset, "--backbone.name", name], capsys)
    assert code == 2
    assert WRONG[name] in error
    assert not Path("runs").exists()


def test_a_file_imports_nothing_and_says_which_flag_does(dataset, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("backbone: {name: 'my_own:Mine'}\n")
    code, error = run(train.main, [*dataset, "--config", "c.yaml"], capsys)
    assert code == 2
    assert "unroll train --backbone.name my_own:Mine" in error
    assert "my_own" not in sys.modules


def test_only_the_flag_with_this_very_value_allows_an_import():
    assert says(["--steps", "3", "--backbone.name", "a:B"], "--backbone.name", "a:B")
    assert says(["--backbone.name=a:B"], "--backbone.name", "a:B")
    for arguments in (["--backbone.name", "a:C"], ["--dataset", "a:B"], ["a:B"], ["--backbone.name=a:BC"], []):
        assert not says(arguments, "--backbone.name", "a:B")


def test_a_run_with_a_backbone_of_ones_own_is_trained_repeated_continued_and_played(dataset, tmp_path, capsys):
    flag = ["--backbone.name", "my_own:Mine"]
    assert train.main([*dataset, *flag, "--backbone.options.gate", "hard"]) == 0
    folder = "runs/toy/my_own.Mine/seed0"
    assert f"unroll evaluate {folder} --backbone my_own:Mine\n" in capsys.readouterr().out
    assert (tmp_path / folder / "evaluation.json").exists()
    commands = [
        (train.main, ["--config", f"{folder}/config.yaml", "--run_dir", "again"], flag),
        (train.main, ["--resume", "true", "--run_dir", folder, "--steps", "4"], flag),
        (evaluate.main, [folder], ["--backbone", "my_own:Mine"]),
        (collect.main, ["--run", folder, "--episodes", "2", "--output", "o.hdf5"], ["--backbone", "my_own:Mine"]),
    ]
    for command, arguments, allowing in commands:
        forget()
        code, error = run(command, arguments, capsys)
        assert code == 2
        assert "my_own:Mine is not imported" in error
        assert "my_own" not in sys.modules
        assert run(command, [*arguments, *allowing], capsys)[0] == 0
    assert (tmp_path / folder / "checkpoints" / "step_00000004").is_dir()


def test_the_environment_imports_nothing_either(dataset, monkeypatch, capsys):
    """With JSONARGPARSE_DEFAULT_ENV a parser takes its arguments from variables as well."""
    assert train.main([*dataset, "--run_dir", "run"]) == 0
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("EVALUATE_BACKBONE", "TRAIN_BACKBONE__NAME"):
        monkeypatch.setenv(name, "my_own:Mine")
    for command, arguments in ((evaluate.main, ["run"]), (train.main, [*dataset, "--run_dir", "another"])):
        run(command, arguments, capsys)
        assert "my_own" not in sys.modules


def laws(name, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests/laws/test_laws.py")]
    return subprocess.run([*command, "--backbone", name, *arguments], capture_output=True, text=True, timeout=120)


def test_a_backbone_of_ones_own_that_breaks_a_law_is_found():
    result = laws("my_own:Leaking", "-k", "blind or independent")
    assert result.returncode == 1, result.stdout
    assert "2 failed, 2 passed" in result.stdout
    assert "test_law[an_episode_is_blind_to_the_one_before-my_own:Leaking-float64]" in result.stdout
    broken = "my_own:Leaking breaks the law that an episode is blind to the one before: the outputs of an episode "
    assert broken in result.stdout


def test_a_wrong_name_is_one_line_for_the_laws():
    result = laws("my_own:Mime")
    assert result.returncode == 4
    assert result.stderr.strip() == "ERROR: backbone my_own:Mime: my_own has no class Mime (did you mean Mine?)"
