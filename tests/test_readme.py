"""What the README says is true: its Python code runs, its commands parse, the files that it names exist."""

import re
import shlex
from pathlib import Path

import pytest

from configs import load_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_the_python_code_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_a_training_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [word.replace("runs/…", "runs/x") for word in shlex.split(command)[2:]]
    if "--help" not in arguments and "runs/x" not in " ".join(arguments):
        load_config(arguments)


def test_the_two_commands_of_the_start_work_on_their_own():
    start = [c for c in COMMANDS if c.startswith("python3 -m venv")]
    assert len(start) == 2
    assert all("-c constraints.txt" in command for command in start)


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:configs|agents|policies|envs|benchmarks|tests)/[\w./]+)`", TEXT)))
)
def test_a_file_that_is_named_exists(name):
    assert (ROOT / name).exists()


def test_every_dependency_has_a_line():
    listed = re.findall(r'^    "([\w-]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for name in set(listed) - {"ignore", "error", "default"}:
        assert f"`{name}`" in TEXT, name
