"""Dependencies point one way, and files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "policies": set(),
    "envs": set(),
    "agents": {"policies", "envs"},
    "configs": {"agents", "policies", "envs"},  # from a config to an agent in its environment
    "deploy": {"agents", "policies", "envs"},
    "comparison": {"configs", "agents", "policies", "envs"},
    "sharing": {"comparison", "configs", "agents", "policies", "envs"},
}
COMMANDS = {Path("envs/collect.py")}  # a command like train.py: it stands above the packages
OURS = {*ALLOWED, "train", "evaluate", "compare", "export", "share"}
FILES = [path.relative_to(ROOT) for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_package_imports_only_what_lies_below_it(path):
    if path not in COMMANDS:
        package = path.parts[0]
        assert set(imported(path)) & OURS <= ALLOWED[package] | {package}


def test_no_file_is_longer_than_300_lines():
    assert not [path for path in FILES if len((ROOT / path).read_text().splitlines()) > 300]
