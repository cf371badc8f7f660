"""Helpers of the benchmarks over backbones: flags, results that are not computed twice, and tables in Markdown."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from unroll.agents.common.machine import machine
from unroll.errors import BackboneError
from unroll.files import write_whole
from unroll.policies.backbones import BACKBONES, options_of
from unroll.policies.backbones.minrnn import MinRNN
from unroll.policies.backbones.registry import find_backbone
from unroll.tables import markdown_table

Row = dict[str, Any]


def make_parser(module: str, about: str, **layers: Any) -> argparse.ArgumentParser:
    """Make a parser with the flags that these benchmarks share. ``layers`` declares --layers."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbones", type=backbone_names, default=list(BACKBONES), help="a,b,…; default: all")
    parser.add_argument("--layers", **layers)
    parser.add_argument("--seeds", type=positive, default=1, help="how many, from 0")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for events and results; continued if it exists"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=positive, default=1)
    return parser


def backbone_names(text: str) -> list[str]:
    """Parse names of backbones, separated by commas."""
    names = text.split(",")
    try:
        for name in names:
            options_of(name)
    except BackboneError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def device(text: str) -> str:
    """Parse a device that this machine has."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there.append("cuda")
    if text not in there:
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine")
    return text


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positives(text: str) -> list[int]:
    """Parse whole numbers above 0, separated by commas."""
    return [positive(part) for part in text.split(",")]


def duration(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration")
    return value


def fill(options: argparse.Namespace, defaults: dict[str, Any]) -> None:
    """Give their default to the options that the command line does not name."""
    for key, value in defaults.items():
        if getattr(options, key, None) is None:
            setattr(options, key, value)


def fitting(name: str, **wanted: Any) -> dict[str, Any]:
    """Return the wanted options that backbone ``name`` has."""
    return {key: value for key, value in wanted.items() if key in options_of(name)}


def with_signed_gates(name: str) -> list[tuple[str, dict[str, Any]]]:
    """List the backbone, and where it has them the same with signed gates: in words, and the options given."""
    if "signed" not in options_of(name):
        return [(name, {})]
    some = [(f"{name} some signed", {"signed": "some"})] if issubclass(find_backbone(name), MinRNN) else []
    return [(name, {"signed": False}), *some, (f"{name} signed", {"signed": True})]


def listed(values: dict[str, Any]) -> str:
    """Write the help of a flag that stands for several options."""
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            parts.append(listed(value))
        else:
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def once(folder: Path, settings: Row, compute: Callable[[], Row]) -> Row:
    """Return ``compute()``, and keep it in ``folder``, so that it is not computed twice with the same settings."""
    file = folder / "result.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known["settings"] == settings:
            return known["result"]

    # The events are those of a run that was cut off, or that had other settings.
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    result = compute()
    write_whole(file, json.dumps({"settings": settings, "machine": machine(), "result": result}, indent=1))
    return result


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Write the mean, with the range in brackets if there is more than one value."""
    mean = f"{statistics.mean(values):,.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):,.{digits}f} … {max(values):,.{digits}f})"


def summary(results: list[Row]) -> Row:
    """Make the columns of an experiment: the accuracy over seeds, and what the training took."""
    return {
        "accuracy, %": spread([result["accuracy"] for result in results]),
        "parameters": f"{results[0]['parameters']:,}",
        "updates": spread([result["updates"] for result in results], 0),
        "seconds": spread([result["seconds"] for result in results], 0),
    }


def report(title: str, rows: list[Row], output: Path) -> None:
    """Print rows of equal keys as a table in Markdown, and write them to results.json."""
    table = markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    print(f"{title}\n\n{table}\n\n{machine()}, {torch.get_num_threads()} thread(s)")
    (output / "results.json").write_text(json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1))
