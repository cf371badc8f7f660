"""What the README says is true: its Python code runs, its commands parse, the files that it names exist."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from toy import TINY, toy_episodes
from unroll import cli
from unroll.agents import schemas
from unroll.commands import compare, record, share
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
FOLDERS = "agents|benchmarks|configs|docs|envs|policies|tests|unroll"
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(MODULE,) = (block for block in BLOCKS if block.startswith("# my_module.py\n"))


@pytest.mark.parametrize("code", [block for block in BLOCKS if block != MODULE])
def test_the_python_code_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def module(command):
    """The command's file as a module, its arguments, for a command line of ours."""
    words = shlex.split(command.replace("runs/…", "runs/x"))
    return (words[1], words[2:]) if words[0] == "unroll" else (None, [])


@pytest.mark.parametrize("task", ["tests/laws/test_laws.py", "check_backbone", "unroll train", "unroll backbones"])
def test_the_commands_for_a_backbone_of_ones_own_work(task, tmp_path):
    """In a folder with the example's file, and small data for training."""
    (command,) = (c for c in COMMANDS if task in c and "my_module" in c and "runs/…" not in c)
    (tmp_path / "my_module.py").write_text(MODULE)
    words = shlex.split(command)
    if task == "unroll train":
        episodes = dataclasses.replace(toy_episodes(10), env_id=None)  # another process knows no ToyBox-v0
        write_hdf5(episodes, tmp_path / "toy.hdf5")
        words += ["--dataset", "toy.hdf5", *TINY, "--steps", "3", "--device", "cpu", "--run_dir", "run"]
    words = words[1:] if words[0] == "python" else ["-m", *words]
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run/checkpoints/step_00000003").is_dir() == (task == "unroll train")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "unroll train" in c])
def test_a_training_command_parses(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # configs are found by their names wherever one is
    arguments = shlex.split(command.replace("runs/…", "runs/x").partition("unroll train")[2])
    if "--help" not in arguments and "runs/x" not in " ".join(arguments):
        load_config(arguments, schemas())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("unroll compare")])
def test_a_comparing_command_parses(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parser = compare.make_parser()
    own, flags = compare.split(parser, module(command)[1])
    options = parser.parse_args(own)
    assert options.folders or options.config
    for path in options.config or []:
        load_config(["--config", path, *flags], schemas())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("unroll record", "unroll share"))])
def test_another_command_parses(command):
    name, arguments = module(command)
    parsers = {"record": record.make_parser, "share": share.make_parser}
    parsers[name]().parse_args(arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("unroll ")])
def test_every_command_is_one_of_ours(command):
    assert module(command)[0] in cli.COMMANDS


def test_the_two_commands_of_the_start_work_on_their_own():
    start = [c for c in COMMANDS if c.startswith("python3 -m venv")]
    assert len(start) == 2
    assert all("-c constraints.txt" in command for command in start)


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(rf"`((?:{FOLDERS})/[\w./]+)`", TEXT))),
)
def test_a_file_that_is_named_exists(name):
    assert (ROOT / name).exists()


def test_every_dependency_has_a_line():
    listed = re.findall(r'^    "([\w-]+)', (ROOT / "pyproject.toml").read_text().partition("[tool")[0], re.MULTILINE)
    for name in set(listed) - {"ignore", "error", "default"}:
        assert f"`{name}`" in TEXT, name
