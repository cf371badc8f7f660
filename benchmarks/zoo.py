"""Put trained runs into the zoo that comes with the package, and write its table.

    python -m benchmarks.zoo cartpole_masked=runs/cartpole_masked/mingru/seed0 …    from the root of the repository

A run becomes zoo:NAME/BACKBONE, in place of one that has this name. It is its config and its last checkpoint without
the optimizer and the episodes in which it was stopped: it can be played, exported and shown, and does not go on. The
scores in the table are those of the run's own evaluation.json. Without runs the table is written anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unroll.agents import schemas
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from unroll.agents.evaluation.scoring import read_evaluation
from unroll.configs import load_saved
from unroll.errors import CheckpointError
from unroll.files import write_whole
from unroll.tables import exact, markdown_table, significant
from unroll.zoo import FOLDER, zoo_names

MOST_BYTES = 2_000_000  # of all runs together
LEFT_OUT = ("optimizer.", "rollout.")  # the tensors that going on would need
COLUMNS = ("run", "environment", "learned", "numbers in its policy", "return", "memory wiped", "versions")
INTRODUCTION = """\
# Trained runs that come with the package

`unroll evaluate zoo:NAME --video`, `unroll.load("zoo:NAME")`. Each is the last checkpoint of one seed, not the best of
several. Returns are means of deterministic episodes, with 95 % bootstrap intervals over them. `python -m
benchmarks.zoo` makes this folder.

"""


def main(arguments: list[str] | None = None) -> int:
    """Add the runs and write the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER", help="a name for its task, and the folder of a run")
    options = parser.parse_args(arguments)
    try:
        add_runs(FOLDER, options.runs)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def add_runs(zoo: Path, runs: list[str]) -> None:
    """Add runs, each ``NAME=FOLDER``, and write zoo.json and README.md of all that are there.

    Raises:
        CheckpointError: a run cannot be added, or the zoo would be too large.
    """
    table = zoo / "zoo.json"
    entries: dict[str, Any] = {}
    if table.is_file():
        entries = json.loads(table.read_text())
    for word in runs:
        name, _, folder = word.partition("=")
        if not re.fullmatch(r"[a-z0-9_]+", name) or not folder:
            raise CheckpointError(f"{word}: NAME=FOLDER is needed, the name of small letters, digits and _")
        added, entry = add_run(zoo, name, Path(folder))
        entries[added] = entry

    # A folder that was removed by hand leaves the table, too.
    there = zoo_names() if zoo == FOLDER else sorted(entries)
    entries = {name: entries[name] for name in there}
    write_whole(table, json.dumps(entries, indent=1) + "\n")
    rows = [row(name, entry) for name, entry in entries.items()]
    write_whole(zoo / "README.md", f"{INTRODUCTION}{markdown_table(COLUMNS, rows)}\n")

    size = sum(path.stat().st_size for path in zoo.rglob("*") if path.is_file() and path.suffix != ".pyc")
    if size > MOST_BYTES:
        raise CheckpointError(f"{zoo}: {size:,} bytes, more than the {MOST_BYTES:,} that the package has room for")


def add_run(zoo: Path, name: str, run: Path) -> tuple[str, dict[str, Any]]:
    """Copy what the zoo keeps of a run; return its name there, and what the table says of it.

    Raises:
        CheckpointError: the run is damaged, has no evaluation of its last checkpoint, or a backbone of the user's own.
    """
    checkpoint = latest_checkpoint(run)
    evaluation = read_evaluation(run / "evaluation.json")
    if evaluation is None:
        raise CheckpointError(f"{run}: holds no evaluation.json; unroll evaluate {run} writes it")
    config = load_saved(run / "config.yaml", schemas(), "python -m benchmarks.zoo")
    if ":" in config.backbone.name:
        raise CheckpointError(f"{run}: its backbone {config.backbone.name} does not come with the package")

    tensors, state = read_checkpoint(checkpoint)
    kept = {key: value for key, value in tensors.items() if not key.startswith(LEFT_OUT)}
    if "rollout" in state:
        state["rollout"] = None  # as of environments that cannot be saved

    folder = zoo / name / config.backbone.name
    shutil.rmtree(folder, ignore_errors=True)
    written = folder / "checkpoints" / checkpoint.name
    write_checkpoint(written, kept, state)
    shutil.copyfile(run / "config.yaml", folder / "config.yaml")
    for path in written.iterdir():
        path.chmod(0o644)  # safetensors lets nobody else read its files
    entry = {
        "env": evaluation["env"],
        "learned": f"{state['num_timesteps']:,} {'updates' if 'updates' in evaluation else 'steps'}",
        "numbers": count(kept),
        "episodes": evaluation["episodes"],
        "results": [summary(result) for result in evaluation["results"]],
        "wiped": summary(evaluation["ablation"]) if "ablation" in evaluation else None,
        "versions": {package: evaluation["versions"][package] for package in ("torch", "gymnasium", "mujoco")},
    }
    return f"{name}/{config.backbone.name}", entry


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a result."""
    return {key: result[key] for key in ("target_return", "return_mean", "return_interval")}


def count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Count the numbers of the policy: parameters, and statistics that are part of it."""
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("policy."))


def row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Make the cells of a run."""
    wiped = ""
    if entry["wiped"]:
        wiped = significant(entry["wiped"]["return_mean"])
    return [
        f"`zoo:{name}`",
        entry["env"],
        entry["learned"],
        f"{entry['numbers']:,}",
        "; ".join(in_words(result) for result in entry["results"]) + f" ({entry['episodes']} episodes)",
        wiped,
        ", ".join(f"{package} {version}" for package, version in entry["versions"].items()),
    ]


def in_words(result: Mapping[str, Any]) -> str:
    """Write a return with its interval, if it has one, behind the return that was asked for."""
    text = significant(result["return_mean"])
    if result["return_interval"] is not None:
        low, high = result["return_interval"]
        text += f" ({significant(low)} to {significant(high)})"
    if result["target_return"] is not None:
        text = f"{exact(round(result['target_return'], 1))} asked: {text}"
    return text


if __name__ == "__main__":
    sys.exit(main())
