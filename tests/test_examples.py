"""The examples run, each in a process and a folder of its own, with a small budget; and so do the notebooks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest

from unroll.commands import export

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PRINTED = {
    "offline": ("534 episodes", "asked for   inf:"),
    "own_env": ("return after 1024 steps: ",),
    "own_backbone": ("every law holds", "return after 1024 steps: "),
    "pretrain": ("after pretraining: ", "after 1024 steps of PPO: "),
    "compare_backbones": ("mingru   interquartile mean", "lstm     interquartile mean", "comparison.png"),
    "play_onnx": ("episode 2: ", "PyTorch imported: False"),
}
STEPS = {"offline": "2", "compare_backbones": "256"}


def test_every_script_is_tested_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_a_script_runs_as_a_person_runs_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "play_onnx":
        assert export.main(["zoo:cartpole_masked/mingru"]) == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STEPS": STEPS.get(name, "1024")}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in PRINTED[name]:
        assert words in result.stdout
    if name == "compare_backbones":  # a run was interrupted before its evaluation
        Path("runs/examples/compare/lstm/seed1/evaluation.json").unlink()
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stdout + again.stderr


def test_the_policy_that_is_not_exported_yet_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(EXAMPLES / "play_onnx.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.endswith("unroll export zoo:cartpole_masked/mingru writes one\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_code_of_a_notebook_runs_and_its_outputs_have_no_error(path, tmp_path, monkeypatch):
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|opt)/", json.dumps(outputs))

    # A backbone of one's own is looked up in the module that a notebook's code is in.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2" if path.stem == "offline" else "1024")
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    matplotlib.use("Agg")
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), vars(module))
