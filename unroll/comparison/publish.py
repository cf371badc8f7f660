"""Write a report: Markdown, CSV, JSON, pictures, and TensorBoard's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from unroll.comparison.board import write_board, write_figures
from unroll.comparison.experiments import Experiment
from unroll.comparison.figures import draw
from unroll.comparison.markdown import to_csv, to_markdown
from unroll.files import write_whole


def publish(output: Path, experiments: list[Experiment], report: dict[str, Any]) -> None:
    """Into ``output``; what an earlier report left there is replaced."""
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".lock"):  # another machine may have finished the same grid
        _publish(output, experiments, report)


def _publish(output: Path, experiments: list[Experiment], report: dict[str, Any]) -> None:
    write_board(output, experiments, report)
    addresses: dict[str, list[str]] = {}
    for experiment in experiments:
        folder = output / "figures" / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        figures = draw(experiment, report["experiments"][experiment.name])
        names = []
        for name, figure in figures:
            figure.savefig(folder / f"{name}.png", dpi=100)
            write_figures(output, experiment.name, {name: figure}, experiment.first.config["steps"])
            names.append(quote(f"figures/{experiment.name}/{name}.png"))
        addresses[experiment.name] = names
    write_whole(output / "comparison.json", json.dumps(report, indent=1) + "\n")
    write_whole(output / "comparison.csv", to_csv(report))
    write_whole(output / "comparison.md", to_markdown(report, addresses))
