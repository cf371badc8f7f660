"""What README.md and docs/ say is true: their Python code runs, their commands parse, the files that they name exist.

A block of Python whose first line is the name of a file, ``# my_module.py``, is that file. The blocks of a page run in
order, in one folder that holds the files of all pages.
"""

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
from unroll.commands import compare, evaluate, record, share
from unroll.comparison import plan
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5

ROOT = Path(__file__).parents[2]
CHANGES = "changelog.md"  # it names files that are gone
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "\n".join(text for name, text in PAGES.items() if name != CHANGES)
FOLDERS = "agents|benchmarks|configs|docs|envs|policies|tests|unroll"
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(text, language):
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands_of(text):
    """The lines of a page's commands, without comments."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines]


COMMANDS = list(dict.fromkeys(command for command in commands_of(TEXT) if command))
CODE = {name: [block for block in blocks(text, "python") if not FILE.match(block)] for name, text in PAGES.items()}
FILES = [(FILE.match(block)[1], block) for block in blocks(TEXT, "python") if FILE.match(block)]
MODULES = dict(FILES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that a reader is told to write."""
    for name, code in MODULES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("page", [page for page, code in CODE.items() if code])
def test_the_python_code_of_a_page_runs(page, folder, capsys):
    names = {}
    for code in CODE[page]:
        exec(compile(code, page, "exec"), names)
    printed = capsys.readouterr().out
    assert printed or "print(" not in "".join(CODE[page])


def test_a_file_is_the_same_on_all_pages():
    assert set(FILES) == set(MODULES.items())


def module(command):
    """The command's file as a module, its arguments, for a command line of ours."""
    words = shlex.split(command.replace("runs/…", "runs/x"))
    return (words[1], words[2:]) if words[0] == "unroll" else (None, [])


@pytest.mark.parametrize("task", ["tests/laws/test_laws.py", "check_backbone", "unroll train", "unroll backbones"])
def test_the_commands_for_a_backbone_of_ones_own_work(task, folder):
    """In a folder with the example's file, and small data for training."""
    (command,) = (c for c in COMMANDS if task in c and "my_module" in c and "runs/…" not in c)
    words = shlex.split(command)
    if task == "unroll train":
        episodes = dataclasses.replace(toy_episodes(10), env_id=None)  # another process knows no ToyBox-v0
        write_hdf5(episodes, folder / "toy.hdf5")
        words += ["--dataset", "toy.hdf5", *TINY, "--steps", "3", "--device", "cpu", "--run_dir", "run"]
    words = words[1:] if words[0] == "python" else ["-m", *words]
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / "run/checkpoints/step_00000003").is_dir() == (task == "unroll train")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "unroll train" in c])
def test_a_training_command_parses(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # configs are found by their names wherever one is
    arguments = shlex.split(command.replace("runs/…", "runs/x").partition("unroll train")[2])
    if "--help" not in arguments and "runs/x" not in " ".join(arguments):
        load_config(arguments, schemas())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("unroll compare")])
def test_a_comparing_command_makes_its_grid(command, monkeypatch, tmp_path):
    """All rows of it can have the parameters of the first one."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_module", None)
    (tmp_path / "my_module.py").write_text("from unroll.policies.backbones.gru import GRU as Leaky\n")
    grids = []

    def make_grid(options, flags, arguments, *_):
        options.jobs = 1
        grids.append(plan.plan(options, flags, arguments))
        return 0

    monkeypatch.setattr(plan, "steps_in", lambda *_: 1)  # of --minutes, which trains to know
    monkeypatch.setattr(compare, "compare", make_grid)
    monkeypatch.setattr(compare, "submit_workers", make_grid)
    monkeypatch.setattr(compare, "report_only", lambda *_: grids.append(True))
    try:
        assert compare.main(module(command)[1]) == 0
        assert all(grids)
        assert grids
    finally:
        sys.modules.pop("my_module", None)


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith(("unroll evaluate", "unroll record", "unroll share"))]
)
def test_another_command_parses(command):
    name, arguments = module(command)
    parsers = {"evaluate": evaluate.make_parser, "record": record.make_parser, "share": share.make_parser}
    parsers[name]().parse_args(arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("unroll ")])
def test_every_command_is_one_of_ours(command):
    name, _ = module(command)
    assert name in {*cli.COMMANDS, "--help"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m ")])
def test_a_module_that_is_run_exists(command):
    name = shlex.split(command)[2]
    path = ROOT / name.replace(".", "/")
    assert name == "pytest" or path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_the_two_commands_of_the_start_work_on_their_own():
    start = [c for c in commands_of(PAGES["README.md"]) if c.startswith("python3 -m venv")]
    assert len(start) == 2
    assert all("-c constraints.txt" in command for command in start)


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(rf"`((?:{FOLDERS})/[\w./]+)`", TEXT))),
)
def test_a_file_that_is_named_exists(name):
    assert (ROOT / name).exists()


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert page == "README.md" or f": {page}\n" in contents, page


def test_every_dependency_has_a_line():
    listed = re.findall(r'^    "([\w-]+)', (ROOT / "pyproject.toml").read_text().partition("[tool")[0], re.MULTILINE)
    for name in set(listed) - {"ignore", "error", "default"}:
        assert f"`{name}`" in TEXT, name
