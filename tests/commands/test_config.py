"""Configs: every file loads, a saved config is the same config, and a mistake is one line that names it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unroll.agents import AGENTS, schemas
from unroll.agents.decision.config import DecisionConfig
from unroll.agents.ppo.config import PPOConfig
from unroll.commands import backbones
from unroll.configs import load_config, load_saved, plain_config, read_config, save_config, train_parser
from unroll.configs.sizes import small_seed
from unroll.policies.backbones import make_backbone

FILES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_holds_only_what_differs(path):
    config = load_config(["--config", str(path)], schemas())
    make_backbone(config.backbone.name, config.backbone.d_model, config.backbone.n_layers, **config.backbone.options)
    default = type(config)()
    said = {"agent", "condition"} if path.stem in ("bc", "bc10") else {"agent"}  # these go on top of others
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if value.strip() and not line.startswith((" ", "#")):
            assert key in said or getattr(config, key) != getattr(default, key), f"{key} is the default"


def test_flags_go_on_top_of_files_and_files_on_top_of_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 5\nbackbone: {name: gru, d_model: 32}\nlearning_rate: 3e-4\n")
    (tmp_path / "b.yaml").write_text("steps: 6\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = load_config([*files, "--backbone.d_model", "64", "--backbone.options.memory_span", "50"], schemas())
    assert (config.steps, config.backbone.name, config.backbone.d_model) == (6, "gru", 64)
    assert config.learning_rate == 3e-4
    assert config.backbone.options == {"memory_span": 50}


def test_a_flag_before_a_file_goes_on_top_of_it_too(tmp_path):
    (tmp_path / "a.yaml").write_text("agent: ppo\nlearning_rate: 3e-4\nenv_kwargs: {a: 1, b: 2}\n")
    (tmp_path / "b.yaml").write_text("steps: 6\nseed: 3\n")
    flags = ["--learning_rate", "0.5", "--env_kwargs.c", "3", "--seed=4"]
    files = ["--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]
    for arguments in ([*flags, *files], [*files[:2], *flags, *files[2:]], [*files, *flags]):
        config = load_config(arguments, schemas())
        assert (config.learning_rate, config.steps, config.seed) == (0.5, 6, 4)
        assert config.env_kwargs == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("words", [["5000", "-2.5e3"], ["[5000, -2500]"]])
def test_the_values_of_a_list_may_stand_without_brackets(words):
    config = load_config(["--evaluation.targets", *words, "--steps", "7"], schemas())
    assert (config.evaluation.targets, config.steps) == ([5000, -2500], 7)


def test_the_printed_config_has_the_flags_on_both_sides(capsys):
    with pytest.raises(SystemExit, match="0"):
        load_config(["--seed", "5", "--print_config", "--steps", "7"], schemas())
    printed = capsys.readouterr().out
    assert "seed: 5" in printed
    assert "steps: 7" in printed


@pytest.mark.parametrize("name", ["quoted.yaml", "quoted.json"])
def test_the_printed_config_of_quoted_texts_is_one_that_is_read_again(name, tmp_path, capsys):
    content = {"agent": "ppo", "env": "CartPole-v1", "env_kwargs": {"map": "010", "names": ["yes", "é"], "n": 3}}
    (tmp_path / name).write_text(json.dumps(content))
    arguments = ["--config", str(tmp_path / name)]
    with pytest.raises(SystemExit, match="0"):
        load_config([*arguments, "--print_config"], schemas())
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(["--config", str(tmp_path / "printed.yaml")], schemas()) == load_config(arguments, schemas())


@pytest.mark.parametrize("text", ["steps: null", "evaluation: {targets: [.nan]}"])
def test_a_config_that_is_refused_is_not_printed(text, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        load_config(["--config", str(tmp_path / "c.yaml"), "--print_config"], schemas())
    assert stopped.value.code == 2
    output, error = capsys.readouterr()
    assert (output, len(error.splitlines())) == ("", 1)


def test_a_list_of_one_and_none_are_read_too():
    ppo = load_config(["--agent", "ppo", "--net_arch", "32"], schemas())
    assert ppo.net_arch == [32]
    assert load_config(["--evaluation.targets", "null"], schemas()).evaluation.targets is None


def test_what_is_meant_is_read_as_it_stands(tmp_path):
    text = "experiment: 'None'\nevaluation: {env_kwargs: {map: '010', mode: none, rate: 0.5, steps: 0}}\nseed: 10\n"
    (tmp_path / "a.yaml").write_text(text)
    config = load_config(["--config", str(tmp_path / "a.yaml")], schemas())
    assert (config.experiment, config.seed) == ("None", 10)
    kwargs = {"map": "010", "mode": "none", "rate": 0.5, "steps": 0}
    assert config.evaluation.env_kwargs == kwargs
    assert type(config.evaluation.env_kwargs["map"]) is str

    # through a run folder and a checkpoint too
    save_config(config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")], schemas()) == config
    assert read_config(plain_config(config), schemas(), "here") == config
    flag = load_config(["--evaluation.env_kwargs", "{map: '010', n: 010e1}"], schemas()).evaluation.env_kwargs
    assert flag == {"map": "010", "n": 100.0}
    assert load_config(["--agent", "ppo", "--normalize_reward", "yes", "--steps", "1_0"], schemas()).steps == 10


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
    config = load_config([*arguments, "--run_dir", str(tmp_path)], schemas())
    save_config(config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")], schemas()) == load_config(arguments, schemas())
    assert load_config(["--resume", "true", "--run_dir", str(tmp_path)], schemas()).steps == 7
    assert load_config(["--resume", "true", "--run_dir", str(tmp_path), "--steps", "9"], schemas()).steps == 9


def test_the_agent_is_chosen_by_a_flag_or_by_a_file(tmp_path):
    (tmp_path / "ppo.yaml").write_text("agent: ppo\nsteps: 7\n")
    file = ["--config", str(tmp_path / "ppo.yaml")]
    assert isinstance(load_config([], schemas()), DecisionConfig)
    for arguments in (["--agent", "ppo"], ["--agent=ppo"], file, [f"--config={file[1]}"]):
        assert isinstance(load_config(arguments, schemas()), PPOConfig)
    assert load_config(file, schemas()).steps == 7


def test_a_saved_ppo_config_is_the_same_config_and_is_resumed_without_naming_the_agent(tmp_path):
    arguments = [
        "--agent",
        "ppo",
        "--net_arch",
        "[8, 4]",
        "--target_kl",
        "0.1",
        "--backbone.options",
        "{expansion: 2, signed: some}",
    ]
    config = load_config([*arguments, "--run_dir", str(tmp_path)], schemas())
    save_config(config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")], schemas()) == load_config(arguments, schemas())
    assert read_config(plain_config(config), schemas(), "here") == load_config(arguments, schemas())
    assert load_config(["--resume", "true", "--run_dir", str(tmp_path), "--steps", "9"], schemas()).steps == 9


@pytest.mark.parametrize("damage", ["cut", "edited", "without its checksum"])
def test_a_runs_own_config_is_believed_only_as_it_was_written(damage, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    save_config(load_config(["--steps", "7"], schemas()), path)
    assert load_saved(path, schemas(), "here").steps == 7
    text = path.read_text()
    changed = {"cut": text[: text.index("optimizer")], "edited": text.replace("steps: 7", "steps: 9")}
    path.write_text(changed.get(damage, text.partition("\n")[2]))
    for read in (
        lambda: load_saved(path, schemas(), "here"),
        lambda: load_config(["--resume", "true", "--run_dir", str(tmp_path)], schemas()),
    ):
        with pytest.raises(SystemExit) as stopped:
            read()
        assert stopped.value.code == 2
        assert "cut, damaged or edited since the run wrote it" in capsys.readouterr().err


def test_a_checkpoint_that_names_a_file_for_a_config_is_refused(tmp_path, capsys):
    (tmp_path / "other.yaml").write_text("d_model: 8")
    fields = plain_config(load_config(["--agent", "ppo"], schemas())) | {"backbone": str(tmp_path / "other.yaml")}
    with pytest.raises(SystemExit):
        read_config(fields, schemas(), "state.json")
    assert "state.json: backbone is" in capsys.readouterr().err


MISTAKES = {
    "a misspelt flag": (["--lerning_rate", "1"], None, "no option --lerning_rate (did you mean --learning_rate?)"),
    "a misspelt key": ([], "lerning_rate: 1", "no key 'lerning_rate' in a config (did you mean learning_rate?)"),
    "a misspelt inner key": ([], "backbone: {nam: gru}", "'backbone.nam' in a config (did you mean backbone.name?)"),
    "a wrong type": ([], "steps: many", "steps"),
    "a wrong number": (["--batch_size", "0"], None, "batch_size"),
    "a share above one": (["--top_fraction", "1.5"], None, "top_fraction"),
    "not a number": (["--learning_rate", "nan"], None, "learning_rate"),
    "a wrong choice": (["--tokens", "many"], None, "Expected one of ['fused', 'interleaved']"),
    "a null": ([], "backbone: {name: null}", "backbone.name is null"),
    "a null where an empty mapping is meant": ([], "backbone:\n  options:\n", "backbone.options is null"),
    "broken YAML": ([], "steps: [1,", "parsing"),
    "a missing file": (["--config", "nowhere.yaml"], None, "nowhere.yaml"),
    "an unknown agent": (["--agent", "pppo"], None, "agent 'pppo': expected one of decision, ppo"),
    "a misspelt key of PPO": ([], "{agent: ppo, gama: 1}", "no key 'gama' in a config (did you mean gamma?)"),
    "a key of another agent": ([], "{agent: ppo, context: 5}", "for agent ppo: it is one of agent decision"),
    "a flag of another agent": (["--agent", "ppo", "--dataset", "x"], None, "--dataset for agent ppo: it is one of"),
    "PPO's flag without PPO": (["--gae_lambda", "1"], None, "--gae_lambda for agent decision: it is one of agent ppo"),
    "a wrong inner value of PPO": (["--agent", "ppo", "--net_arch", "[8, 0]"], None, "net_arch"),
    "a null of PPO": ([], "{agent: ppo, gamma: null}", "gamma is null"),
    "two agents": (
        ["--agent", "ppo"],
        "agent: decision",
        "c.yaml is a config for agent decision, and not for agent ppo",
    ),
    "an option by dots": (
        [],
        "backbone.options.conv: 7",
        "backbone.options.conv: dots do not lead into backbone.options in a file; write backbone.options: {conv: …}",
    ),
    "an option by dots in a group": ([], "backbone: {options.conv: 7}", "write backbone.options: {conv: …}"),
    "an argument by dots": ([], "agent: ppo\nenv_kwargs.length.of: 7", "in a file; write env_kwargs: {length: …}"),
    "an alias": ([], "backbone: {options: &a {expansion: 2}}\nevaluation: *a", "the alias *a"),
    "a bomb of aliases": ([], "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "the alias *a"),
    "a key twice": ([], "steps: 5\nseed: 1\nsteps: 7\n", "steps is there twice, in lines 1 and 3"),
    "a section twice": ([], "backbone: {name: gru}\nseed: 1\nbackbone: {n_layers: 1}\n", "lines 1 and 3"),
    "an inner key twice": ([], "backbone: {name: gru, name: lstm}", "name is there twice, in line 1"),
    "a key by two names": (
        [],
        "backbone: {name: gru}\nbackbone.name: lstm",
        "backbone.name is there twice, by this name",
    ),
    "an octal number": ([], "steps: 5\nseed: 010", "010 in line 2 can be read in two ways"),
    "no octal number": ([], "seed: 08", "08 in line 1 can be read in two ways"),
    "a sexagesimal number": ([], "steps: 1:30", "1:30 in line 1 can be read in two ways; write the number out"),
    "octal and binary": ([], "seed: 0o17\nsteps: 0b11", "0o17 in line 1 can be read in two ways; write the number out"),
    "a country": ([], "agent: ppo\nenv_kwargs: {country: no}", "no in line 2 can be read in two ways; true or false"),
    "a switch of a backbone": (
        [],
        "backbone:\n  name: gru\n  options:\n    - [a, Off]\n",
        "Off in line 4 can be read in two ways; true or false",
    ),
    "a switch of an evaluation": ([], "evaluation.env_kwargs:\n  mode: on\n", "on in line 2 can be read in two ways"),
    "a number with _": ([], "agent: ppo\nenv_kwargs: {n: 1_0}", "1_0 in line 2 can be read in two ways; write the num"),
    "a switch in a flag": (["--agent", "ppo", "--env_kwargs", "{mode: on}"], None, "--env_kwargs: on in line 1 can be"),
    "a key twice in a flag": (["--evaluation.env_kwargs={a: 1, a: 2}"], None, "--evaluation.env_kwargs: a is there tw"),
    "an octal target": (["--evaluation.targets", "[010]"], None, "--evaluation.targets: 010 in line 1 can be read"),
    "Python's null in a flag": (["--run_dir", "None"], None, "--run_dir None: left out, --run_dir stands for nothing"),
    "Python's null": ([], "experiment: None", "None in line 1 can be read in two ways; null stands for nothing"),
    "deep nesting": ([], f"backbone: {'[' * 50}{']' * 50}", "nested more than 20 deep"),
    "nesting without an end": ([], f"backbone: {'[' * 5000}", "not the YAML of a config"),
    "another file": ([], "backbone: /etc/passwd", "backbone is '/etc/passwd', but it has keys of its own"),
    "a NUL": ([], 'env: "a\\0b"', "a value with a NUL character"),
    "a book": ([], "x" * 3_000_000, "3,000,000 bytes, where a config has a few hundred"),
    "a list": ([], "[1, 2]", "holds one list, not keys and values"),
    "nothing at all": ([], "", "holds nothing, not keys and values"),
    "a web page": ([], "<!DOCTYPE html><html></html>", "holds one str, not keys and values"),
    "a number where keys are": ([], "backbone: 1.5", "backbone is 1.5, but it has keys of its own"),
    "a group without keys, and a key of it": (
        ["--evaluation.episodes", "5"],
        "evaluation:\n",
        "evaluation is null, but",
    ),
    "a number for a group, and a key of it": (
        ["--pretrain.updates", "5"],
        "agent: ppo\npretrain: 5\n",
        "pretrain is 5, but",
    ),
    "no group in a flag": (["--evaluation", "null"], None, "evaluation"),
    "a config in a config": ([], "config: other.yaml\nseed: 1", "no key 'config' in a config; --config A --config B"),
    "a number among datasets": (
        [],
        "dataset: [a.hdf5, 3]",
        "\"dataset\": ['a.hdf5', 3]: Expected one of list[str], str;",
    ),
    "an agent that is a list": ([], "agent: []", "agent []: expected one of decision, ppo"),
    "more than any machine has": ([], "backbone: {d_model: 1000000000}", "d_model"),
    "as many environments": (["--agent", "ppo", "--n_envs", "1000000000"], None, "n_envs"),
    "an infinite rate": (["--learning_rate", ".inf"], None, "learning_rate"),
    "a nested flag": (["--backbone.options", "[" * 5000], None, "options"),
    "code": ([], "steps: !!python/object/apply:os.system ['true']", "python"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, tmp_path, capsys):
    arguments, text, expected = MISTAKES[mistake]
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
        arguments = ["--config", str(tmp_path / "c.yaml"), *arguments]
    with pytest.raises(SystemExit) as stopped:
        load_config(arguments, schemas())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--weight_decay", "-1"], "-1: does not conform to restriction v>=0"),
        (["--weight_decay", "abc"], "abc: could not convert string to float: 'abc'"),
        (["--evaluation.targets", "a"], "['a']: Expected a float. Got value: a"),
        (["--evaluation.env_kwargs", "3"], "3: Expected a dict"),
    ],
)
def test_a_value_that_may_be_null_is_refused_as_shortly_as_any_other(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        load_config(arguments, schemas())
    key = arguments[0].removeprefix("--")
    assert f'train: Parser key "{key}": {expected}, and is not null; see --help' in capsys.readouterr().err


def test_help_explains_every_field_of_either_agent(capsys):
    explained = {
        (): ("gradient updates", "dropout of the embedding", "returns to ask for", "width", "--agent ppo --help"),
        ("--agent", "ppo"): ("environment steps", "discount of rewards", "memory wiped", "how many checkpoints"),
    }
    for arguments, phrases in explained.items():
        with pytest.raises(SystemExit):
            load_config([*arguments, "--help"], schemas())
        text = " ".join(capsys.readouterr().out.split())
        for words in phrases:
            assert words in text


def test_what_may_be_left_out_is_not_said_to_be_required(capsys):
    with pytest.raises(SystemExit):
        backbones.main(["--help"])
    assert "required" not in capsys.readouterr().out


def test_every_field_has_its_line_in_the_help():
    for agent in AGENTS:
        for action in train_parser(schemas(), agent)._actions:
            assert action.help, f"{agent}: {action.dest}"


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys, unroll.commands.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_large_seeds_are_seeds_of_their_own_and_small_ones_are_themselves():
    assert [small_seed(seed) for seed in (0, 7, 2**31 - 1)] == [0, 7, 2**31 - 1]
    large = [small_seed(seed) for seed in (2**31, 2**31 + 7, 2**32, 2**33, 2**63 - 1)]
    assert all(0 <= seed < 2**31 for seed in large)
    assert len({*large, 0, 7, 2**31 - 1}) == 8
