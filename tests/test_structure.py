"""The house: dependencies point one way, no room but ``agents`` knows which agents there are, and the walk is short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from unroll.agents import AGENTS

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "policies", "envs", "configs")

# What each part may import of ours, beside itself. The longest name that fits counts.
GROUND = {"unroll.errors", "unroll.files", "unroll.tables"}
BELOW_AGENTS = {"unroll.configs", "unroll.policies", "unroll.envs", "unroll.zoo"} | GROUND
ALGORITHMS = {"unroll.agents.decision", "unroll.agents.ppo"}
COMMON = {"unroll.agents.algorithm", "unroll.agents.common"} | BELOW_AGENTS
PARTS = {
    "unroll.errors": set(),
    "unroll.files": set(),
    "unroll.tables": set(),
    "unroll.configs": GROUND,
    "unroll.policies": GROUND,
    "unroll.envs": {"unroll.envs.datasets"} | GROUND,
    "unroll.envs.datasets": {"unroll.envs.datasets.registered"} | GROUND,
    "unroll.envs.datasets.registered": {"unroll.envs"} | GROUND,  # when a file names an environment
    "unroll.agents.common": COMMON,
    "unroll.agents.evaluation": COMMON,
    "unroll.agents.decision": {"unroll.agents.evaluation"} | COMMON,
    "unroll.agents.ppo": {"unroll.agents.evaluation"} | COMMON,
    "unroll.agents.algorithm": {"unroll.agents.common", "unroll.agents.evaluation"} | BELOW_AGENTS,
    "unroll.agents": ALGORITHMS | {"unroll.agents.algorithm", "unroll.agents.common"} | BELOW_AGENTS,
    "unroll.testing": {"unroll.policies"} | GROUND,
    "unroll.own": {"unroll.policies", "unroll.envs"} | GROUND,
    "unroll.zoo": GROUND,
    "unroll.pictures": {"unroll.envs.datasets"} | GROUND,
    "unroll.export": {"unroll.agents"} | BELOW_AGENTS,
    "unroll.comparison": {"unroll", "unroll.agents", "unroll.own"} | BELOW_AGENTS,
    "unroll.hub": {"unroll.agents", "unroll.comparison"} | BELOW_AGENTS,
    "unroll.commands": {
        *("unroll.agents", "unroll.comparison", "unroll.export", "unroll.hub", "unroll.own"),
        "unroll.pictures",
        *BELOW_AGENTS,
    },
    "unroll.cli": {"unroll.commands"},
    "unroll": {"unroll.agents", "unroll.cli"},
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts if parts[0] == "unroll" else ("unroll", *parts))


def files():
    for top in (*ROOMS, "unroll"):
        for path in sorted((ROOT / top).rglob("*.py")):
            linked = top == "unroll" and path.relative_to(ROOT / top).parts[0] in ROOMS
            if not linked:
                yield path


FILES = {module_of(path): path for path in files()}


def part_of(module):
    fitting = [part for part in PARTS if module == part or module.startswith(f"{part}.")]
    return max(fitting, key=len)


def imported(path):
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "unroll")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "unroll":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


@pytest.mark.parametrize("module", FILES)
def test_a_part_imports_only_what_lies_below_it(module):
    own = part_of(module)
    for other in imported(FILES[module]):
        part = part_of(other)
        allowed = part == own or any(part == one or part.startswith(f"{one}.") for one in PARTS[own])
        assert allowed, f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in FILES if part_of(m) not in {"unroll.agents", *ALGORITHMS}])
def test_no_other_file_knows_which_agents_there_are(module):
    for other in imported(FILES[module]):
        assert part_of(other) not in ALGORITHMS, f"{module} imports {other}"
    names = {algorithm.agent for algorithm in AGENTS.values()} | set(AGENTS)
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Compare):
            words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not words & names, f"{module}, line {node.lineno}: asks which agent it is"


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("unroll", ("torch", "mujoco", "gymnasium", "stable_baselines3")),
        ("unroll.agents", ("torch", "mujoco", "stable_baselines3")),
        ("unroll.commands.train", ("torch", "mujoco", "stable_baselines3")),
        ("unroll.configs", ("torch", "unroll.agents", "unroll.envs", "unroll.policies")),
        ("unroll.envs.datasets.sources", ("torch", "mujoco", "stable_baselines3", "unroll.envs.make")),
    ],
)
def test_what_is_not_needed_is_not_imported(module, without):
    code = f"import sys, {module}; print(*(name for name in {without!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not loaded.strip(), f"{module} imports {loaded}"


def test_functions_have_at_most_60_lines():
    long = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body
                if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                    body = body[1:]  # a docstring is no statement
                first = body[0].lineno if body else node.lineno
                if node.end_lineno - first + 1 > 60:
                    long.append(f"{module}.{node.name}: {node.end_lineno - first + 1}")
    assert not long
