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
from unroll.agents import schemas
from unroll.commands import compare, share
from unroll.comparison import budget
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
FOLDERS = "agents|benchmarks|comparison|configs|deploy|docs|envs|policies|sharing|tests"
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(MODULE,) = (block for block in BLOCKS if block.startswith("# my_module.py\n"))


@pytest.mark.parametrize("code", [block for block in BLOCKS if block != MODULE])
def test_the_python_code_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("script", ["tests/test_laws.py", "train.py", "unroll.policies.backbones"])
def test_the_commands_for_a_backbone_of_ones_own_work(script, tmp_path):
    """In a folder with the example's file, and small data for train.py."""
    (command,) = (c for c in COMMANDS if script in c and "my_module" in c and "runs/…" not in c)
    (tmp_path / "my_module.py").write_text(MODULE)
    words = [sys.executable, *shlex.split(command)[1:]]
    if script == "train.py":
        episodes = dataclasses.replace(toy_episodes(10), env_id=None)  # another process knows no ToyBox-v0
        write_hdf5(episodes, tmp_path / "toy.hdf5")
        words += ["--dataset", "toy.hdf5", *TINY, "--steps", "3", "--device", "cpu", "--run_dir", "run"]
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run/checkpoints/step_00000003").is_dir() == (script == "train.py")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_a_training_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [word.replace("runs/…", "runs/x") for word in shlex.split(command)[2:]]
    if "--help" not in arguments and "runs/x" not in " ".join(arguments):
        load_config(arguments, schemas())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python compare.py")])
def test_a_comparing_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = compare.make_parser()
    own, flags = compare.split(parser, shlex.split(command)[2:])
    options = parser.parse_args(own)
    assert options.folders or options.config
    for path in options.config or []:
        load_config(["--config", path, *flags], schemas())


@pytest.mark.parametrize("command", [c for c in COMMANDS if "share.py" in c or "unroll.comparison.budget" in c])
def test_a_command_that_shares_or_plans_parses(command):
    words = shlex.split(command)
    parser, own = (budget.make_parser(), words[3:]) if words[1] == "-m" else (share.make_parser(), words[2:])
    parser.parse_args(own)


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
    listed = re.findall(r'^    "([\w-]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for name in set(listed) - {"ignore", "error", "default"}:
        assert f"`{name}`" in TEXT, name
