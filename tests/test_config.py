"""Configs: every file loads, a saved config is the same config, and a mistake is one line that names it."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import TrainConfig, load_config, save_config
from policies.backbones import make_backbone

FILES = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_holds_only_what_differs(path):
    config = load_config(["--config", str(path)])
    make_backbone(config.backbone.name, config.backbone.d_model, config.backbone.n_layers, **config.backbone.options)
    default = TrainConfig()
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if value.strip() and not line.startswith((" ", "#")):
            assert getattr(config, key) != getattr(default, key), f"{key} is the default"


def test_flags_go_on_top_of_files_and_files_on_top_of_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 5\nbackbone: {name: gru, d_model: 32}\nlearning_rate: 3e-4\n")
    (tmp_path / "b.yaml").write_text("steps: 6\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = load_config([*files, "--backbone.d_model", "64", "--backbone.options.memory_span", "50"])
    assert (config.steps, config.backbone.name, config.backbone.d_model) == (6, "gru", 64)
    assert config.learning_rate == 3e-4
    assert config.backbone.options == {"memory_span": 50}


def test_a_saved_config_repeats_the_run_under_a_new_folder(tmp_path):
    arguments = [
        "--steps",
        "7",
        "--evaluation.targets",
        "[1, 2.5]",
        "--dropout",
        "0",
        "--backbone.options.expansion",
        "2",
    ]
    config = load_config([*arguments, "--run_dir", str(tmp_path)])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == load_config(arguments)
    assert load_config(["--resume", "true", "--run_dir", str(tmp_path)]).steps == 7
    assert load_config(["--resume", "true", "--run_dir", str(tmp_path), "--steps", "9"]).steps == 9


MISTAKES = {
    "a misspelt flag": (["--lerning_rate", "1"], None, "no option --lerning_rate (did you mean --learning_rate?)"),
    "a misspelt key": ([], "lerning_rate: 1", "no key 'lerning_rate' in a config (did you mean learning_rate?)"),
    "a misspelt inner key": ([], "backbone: {nam: gru}", "nam"),
    "a wrong type": ([], "steps: many", "steps"),
    "a wrong number": (["--batch_size", "0"], None, "batch_size"),
    "a share above one": (["--top_fraction", "1.5"], None, "top_fraction"),
    "not a number": (["--learning_rate", "nan"], None, "learning_rate"),
    "a wrong choice": (["--tokens", "many"], None, "Expected one of ['fused', 'interleaved']"),
    "a null": ([], "backbone: {name: null}", "backbone.name is null"),
    "a null where an empty mapping is meant": ([], "backbone:\n  options:\n", "backbone.options is null"),
    "broken YAML": ([], "steps: [1,", "parsing"),
    "a missing file": (["--config", "nowhere.yaml"], None, "nowhere.yaml"),
    "code": ([], "steps: !!python/object/apply:os.system ['true']", "python"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, tmp_path, capsys):
    arguments, text, expected = MISTAKES[mistake]
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
        arguments = ["--config", str(tmp_path / "c.yaml")]
    with pytest.raises(SystemExit) as stopped:
        load_config(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("gradient updates", "dropout of the embedding", "returns to ask for", "width"):
        assert words in text


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys, configs; configs.train_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
