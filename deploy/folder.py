"""The folder of an exported policy: the model, what it takes and gives, and a runner without this toolkit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

from agents.checkpoint import MANIFEST, installed_versions, replace_folder
from deploy import runner
from deploy.check import difference
from deploy.formats import FORMATS, NEEDED, ExportError, Format, write_step
from deploy.steps import Port, Step

ABOUT, README, RUN = "policy.json", "README.md", "run.py"
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
            raise ExportError(f"{format}: the exported policy differs from PyTorch's by {differs:.2g}, nothing is written")
        about = describe(step, facts, checkpoint, format) | {"largest_difference_to_torch": differs}
        (temporary / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        (temporary / README).write_text(readme(about))
        shutil.copyfile(runner.__file__, temporary / RUN)

    replace_folder(folder, write)
    return differs


def check_free(folder: Path) -> None:
    """Raise ExportError unless the folder is absent, empty, or an export and nothing else."""
    if not folder.exists():
        return
    ours = {ABOUT, README, RUN, "__pycache__", *(f"policy.{format}" for format in FORMATS)}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not folder.is_dir() or (names and not ({ABOUT, RUN} <= names <= ours)):
        raise ExportError(f"{folder}: exists and is not an exported policy, so it is left alone; choose another --output")


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
    shown = ", ".join(
        f"`{i['name']}` {i['dtype']} [{', '.join(map(str, i['shape']))}]"
        for i in about["inputs"]
        if i["name"] not in about["state"]
    )
    env = about["env"] or "ENVIRONMENT"
    packages = "numpy and onnxruntime" if about["file"].endswith("onnx") else "numpy and torch"
    ask = " 1000" if any(i["name"] == "return_to_go" for i in about["inputs"]) else ""
    episode = f"python run.py {env}{ask}        # an episode, with gymnasium too"
    if about["wrappers"]:
        episode = f"# observations in {env} end with {' and '.join(about['wrappers'])}"
    return textwrap.dedent(f"""\
        # {about["agent"]} with {about["backbone"]}, for {about["env"] or "an environment that its dataset does not name"}

        One step of a trained policy in `{about["file"]}`, normalisation of observations and bounds of actions included, for
        any number of environments at once: {shown} and the state → `action`, the next state.
        `policy.json` lists names, shapes and types. The state begins as zeros; what `next_state_…` gives is `state_…` of the
        next step, and `reset` is true at the first step of each episode.

            python run.py                   # needs {packages}: what a step takes
            {episode}

        `Policy` in `run.py` keeps the state: `action = Policy(batch=8)({{"observation": …, "reset": …}})`.
        """)
