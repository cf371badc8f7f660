"""Write a report in all its forms: Markdown, CSV, JSON, pictures, and TensorBoard's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
from filelock import FileLock

from unroll.comparison.board import write_board, write_figures
from unroll.comparison.experiments import Experiment
from unroll.comparison.figures import STYLE, draw, draw_sheet
from unroll.comparison.markdown import to_csv, to_markdown
from unroll.files import replacing, write_whole

SHEET = "comparison.png"  # all experiments on one picture


def publish(output: Path, experiments: list[Experiment], report: dict[str, Any]) -> None:
    """Write a report into ``output``, in place of an earlier one."""
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".lock"):  # another machine may have finished the same grid
        write_board(output, experiments, report)
        figures = {}
        for experiment in experiments:
            figures[experiment.name] = publish_figures(output, experiment, report["experiments"][experiment.name])
        with replacing(output / SHEET) as temporary, matplotlib.rc_context(STYLE):
            draw_sheet(experiments, report).savefig(temporary, format="png")
        write_whole(output / "comparison.json", json.dumps(report, indent=1) + "\n")
        write_whole(output / "comparison.csv", to_csv(report))
        write_whole(output / "comparison.md", to_markdown(report, figures))


def publish_figures(output: Path, experiment: Experiment, report: dict[str, Any]) -> list[str]:
    """Write the pictures of an experiment as files and into TensorBoard; return their addresses for the Markdown."""
    folder = output / "figures" / experiment.name
    folder.mkdir(parents=True, exist_ok=True)

    # An earlier report may have had pictures that this one does not have.
    for old in folder.glob("*.png"):
        old.unlink()

    addresses = []
    for name, figure in draw(experiment, report):
        figure.savefig(folder / f"{name}.png", dpi=100)
        write_figures(output, experiment.name, {name: figure}, experiment.first.config["steps"])
        addresses.append(quote(f"figures/{experiment.name}/{name}.png"))
    return addresses
