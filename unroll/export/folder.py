"""The folder of an exported policy: the model, what it takes and gives, and a runner without this toolkit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from unroll.agents.common.checkpoint import MANIFEST, installed_versions, replace_folder
from unroll.agents.common.step import Port, Step
from unroll.errors import ExportError
from unroll.export import play, runner
from unroll.export.check import difference
from unroll.export.formats import FORMATS, NEEDED, Format, write_step

ABOUT, README, RUN, PLAY = "policy.json", "README.md", "run.py", "play.py"
TOLERANCE = 1e-4  # float32, other kernels; a wrong operation is off by more


def write_export(step: Step, facts: dict[str, Any], checkpoint: Path, format: Format, folder: Path) -> float:
    """Write the folder, whole or not at all; the largest difference to PyTorch in a check on random inputs.

    Args:
        facts: of the agent, for policy.json.

    Raises:
        ExportError: the step cannot be written, or computes something else then; the folder is not an export.
    """
    check_free(folder)
    differs = 0.0

    def write(temporary: Path) -> None:
        nonlocal differs
        model = temporary / f"policy.{format}"
        write_step(step, format, model)
        differs = difference(step, runner.load(model))
        if not differs <= TOLERANCE:
            raise ExportError(
                f"{format}: the exported policy differs from PyTorch's by {differs:.2g}, nothing is written"
            )
        about = describe(step, facts, checkpoint, format) | {"largest_difference_to_torch": differs}
        (temporary / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        (temporary / README).write_text(readme(about))
        shutil.copyfile(runner.__file__, temporary / RUN)
        shutil.copyfile(play.__file__, temporary / PLAY)

    replace_folder(folder, write)
    return differs


def check_free(folder: Path) -> None:
    """Raise ExportError unless the folder is absent, empty, or an export and nothing else."""
    if not folder.exists():
        return
    ours = {ABOUT, README, RUN, PLAY, "__pycache__", *(f"policy.{format}" for format in FORMATS)}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not folder.is_dir() or (names and not ({ABOUT, RUN} <= names <= ours)):
        raise ExportError(
            f"{folder}: exists and is not an exported policy, so it is left alone; choose another --output"
        )


def describe(step: Step, facts: dict[str, Any], checkpoint: Path, format: Format) -> dict[str, Any]:
    """What policy.json says; every state begins as zeros."""
    manifest = checkpoint / MANIFEST
    packages = NEEDED if format == "onnx" else ()
    return {
        "file": f"policy.{format}",
        **facts,
        "inputs": [entry(port) for port in step.inputs],
        "outputs": [entry(port) for port in step.outputs],
        "state": {port.name: f"next_{port.name}" for port in step.state},
        "source": {"checkpoint": checkpoint.name, "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()},
        "versions": installed_versions() | {name: importlib.metadata.version(name) for name in packages},
    }


def entry(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": str(port.dtype).removeprefix("torch."), "shape": ["batch", *port.shape]}


def readme(about: dict[str, Any]) -> str:
    """README.md of the folder."""
    entries = [entry for entry in about["inputs"] if entry["name"] not in about["state"]]
    shown = "\n".join(f"- `{i['name']}` {i['dtype']} [{', '.join(map(str, i['shape']))}]" for i in entries)
    env = about["env"]
    asked = " 1000" if any(entry["name"] == "return_to_go" for entry in entries) else ""
    episode = f"\n    python play.py {env}{asked}    # an episode, with gymnasium too" if env else ""
    if about["wrappers"]:
        more = " and ".join(about["wrappers"])
        episode = f"\n\nObservations are those of {env} with {more}, as PreviousStep of unroll shows them."
    needs = "onnxruntime" if about["file"].endswith("onnx") else "torch"
    return TEXT.format(
        shown=shown, episode=episode, needs=needs, title=f"{about['agent']}, {about['backbone']}", **about
    )


TEXT = """\
# {title}

One step of a trained policy, `{file}`, with the normalisation of observations and the bounds of actions in it, for any
number of environments at once: the state and

{shown}

→ `action` and the next state. `policy.json` has all names, shapes and types. The state begins as zeros, `next_state_0`
becomes `state_0` and so on, and `reset` is true at an episode's first step.

    python play.py    # what a step takes{episode}

`run.py` needs numpy and {needs} alone: `policy = run.Policy(batch=8)`, then for each step
`action = policy({{"observation": …, …, "reset": …}})`.
"""
