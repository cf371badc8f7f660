"""The folder of an exported policy: the model, a description of it, and a runner that does without this toolkit."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from unroll.agents.common.checkpoint import hash_of, installed_versions, replace_folder
from unroll.agents.common.step import Port, Step
from unroll.envs.make import ELSEWHERE
from unroll.envs.tasks import MEMORY_TASKS, NO_VELOCITY_TASKS
from unroll.errors import ExportError
from unroll.export import play, runner
from unroll.export.check import difference
from unroll.export.formats import FORMATS, NEEDED, Format, write_step

ABOUT = "policy.json"
README = "README.md"
RUN = "run.py"
PLAY = "play.py"
TOLERANCE = 1e-4  # float32 by other kernels; a wrong operation is off by more


def write_export(step: Step, facts: dict[str, Any], checkpoint: Path, format: Format, folder: Path) -> float:
    """Write the folder, whole or not at all, and check the model on random inputs.

    Args:
        facts: what the agent says of itself, for policy.json.

    Returns:
        The largest difference to PyTorch.

    Raises:
        CheckpointError: the checkpoint has been removed.
        ExportError: the step cannot be written, the file computes something else, or the folder is not an export.
    """
    check_free(folder)
    source = {
        "checkpoint": checkpoint.name,
        "manifest_sha256": hash_of(checkpoint),
    }  # now: a run that learns removes it
    differs = 0.0

    # The model is checked in the temporary folder: a wrong export leaves nothing.
    def write(temporary: Path) -> None:
        nonlocal differs
        model = temporary / f"policy.{format}"
        write_step(step, format, model)
        differs = difference(step, runner.load(model))
        if not differs <= TOLERANCE:  # NaN is no small difference either
            raise ExportError(
                f"{format}: the exported policy differs from PyTorch's by {differs:.2g}, nothing is written"
            )

        about = describe(step, facts, source, format)
        about["largest_difference_to_torch"] = differs
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
    free = False
    if folder.is_dir():
        ours = {ABOUT, README, RUN, PLAY, "__pycache__", *(f"policy.{format}" for format in FORMATS)}
        names = {path.name for path in folder.iterdir()}
        free = not names or {ABOUT, RUN} <= names <= ours
    if not free:
        raise ExportError(
            f"{folder}: exists and is not an exported policy, so it is left alone; choose another --output"
        )


def describe(step: Step, facts: dict[str, Any], source: dict[str, str], format: Format) -> dict[str, Any]:
    """Return the content of policy.json. Every state begins as zeros."""
    versions = installed_versions()
    if format == "onnx":
        versions |= {name: importlib.metadata.version(name) for name in NEEDED}
    return {
        "file": f"policy.{format}",
        **facts,
        "inputs": [entry(port) for port in step.inputs],
        "outputs": [entry(port) for port in step.outputs],
        "state": {port.name: f"next_{port.name}" for port in step.state},
        "source": source,
        "versions": versions,
    }


def entry(port: Port) -> dict[str, Any]:
    """Describe an input or an output."""
    return {"name": port.name, "dtype": str(port.dtype).removeprefix("torch."), "shape": ["batch", *port.shape]}


def readme(about: dict[str, Any]) -> str:
    """Write the README.md of the folder from the content of policy.json."""
    # The state is explained in the text.
    inputs = [entry for entry in about["inputs"] if entry["name"] not in about["state"]]
    lines = []
    for entry in inputs:
        shape = ", ".join(map(str, entry["shape"]))
        lines.append(f"- `{entry['name']}` {entry['dtype']} [{shape}]")
    return TEXT.format(
        title=f"{about['agent']}, {about['backbone']}",
        file=about["file"],
        inputs="\n".join(lines),
        episode=how_to_play(about),
        needs="onnxruntime" if about["file"].endswith("onnx") else "torch",
    )


def how_to_play(about: dict[str, Any]) -> str:
    """Write what follows the command ``python play.py``: how to play an episode, or why play.py cannot."""
    env = about["env"]
    if about["wrappers"]:
        wrappers = " and ".join(about["wrappers"])
        return f"\n\nThe observations are those of {env} with {wrappers}, as unroll's PreviousStep shows them."
    if not env:
        return ""
    takes_target = any(entry["name"] == "return_to_go" for entry in about["inputs"])
    needs = "a return to ask for may follow; needs gymnasium" if takes_target else "needs gymnasium"
    module, _, env_id = env.rpartition(":")
    module = module or registered_by(env_id)
    if not module:
        return f"\n    python play.py {env_id}    # plays an episode; {needs} too"
    package = module.partition(".")[0]
    return f"\n    python play.py {module}:{env_id}    # plays an episode; {needs} and {package} too"


def registered_by(env_id: str) -> str | None:
    """Return the module that registers an environment; None for those that Gymnasium has by itself."""
    if env_id in MEMORY_TASKS | NO_VELOCITY_TASKS:
        return "unroll.envs.make"
    for package, (beginnings, _) in ELSEWHERE.items():
        if env_id.startswith(beginnings):
            return package
    return None


TEXT = """\
# {title}

`{file}` computes one step of a trained policy, for any number of environments at once. The model itself normalises
observations and keeps actions within their bounds. It takes the state and

{inputs}

and gives `action` and the next state. `policy.json` lists all names, shapes and types. The state begins as zeros, and
then `next_state_0` becomes `state_0` and so on. `reset` is true at the first step of an episode.

    python play.py    # measures what a step takes{episode}

`run.py` needs only numpy and {needs}: make `policy = run.Policy(batch=8)` once, and at each step call
`action = policy({{"observation": …, …, "reset": …}})`.
"""
