"""The comparison in TensorBoard: a run for each backbone that is the mean of its seeds, pictures, a table, and the
address that opens the page so that the answer is seen first.

All of it is in one folder, which TensorBoard shows by itself: among the runs of a large grid it would be lost, and from
41 runs on most of TensorBoard's tabs show none before they are chosen by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from unroll.agents.common.logs import write_gif
from unroll.comparison.experiments import Experiment
from unroll.comparison.figures import band
from unroll.comparison.markdown import explanation, overview, ranking
from unroll.comparison.report import MEMORY, PARAMETERS, SPEED
from unroll.errors import ComparisonError

FOLDER = "compare"
MEANS = ("eval/", "train/", "rollout/")  # tags whose means over seeds are shown
LATENCY = "perf/step_latency_us"
MEDIANS = (SPEED, LATENCY, PARAMETERS, MEMORY)
BAND = ("mean", "low", "high")


def write_board(top: Path, experiments: list[Experiment], report: dict[str, Any]) -> None:
    """Write ``top``/compare anew.

    Raises:
        ComparisonError: there are runs in a folder of that name.
    """
    folder = top / FOLDER
    if next(folder.rglob("config.yaml"), None):
        raise ComparisonError(f"{folder}: holds runs, and the report would replace it; give another folder by --output")
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("0_ranking", ranking(report))
        writer.add_text("1_tables", overview(report))
        writer.add_text("2_how_to_read_it", explanation(report))
        writer.add_custom_scalars(_layout(experiments))
    for experiment in experiments:
        for backbone in experiment.runs:
            _write_mean(folder / experiment.name / backbone, experiments, experiment, backbone)


def write_figures(top: Path, name: str, figures: dict[str, Figure], step: int) -> None:
    """The pictures of an experiment into the Images tab."""
    with SummaryWriter(str(top / FOLDER / name)) as writer:
        for title, figure in figures.items():
            writer.add_figure(f"{name}/{title}", figure, step, close=False)


def _write_mean(folder: Path, experiments: list[Experiment], experiment: Experiment, backbone: str) -> None:
    """The mean of a backbone's seeds under the tags of its runs, with its interval and its line in HParams."""
    runs = experiment.runs[backbone]
    with SummaryWriter(str(folder)) as writer:
        config = runs[0].config
        values = {
            "backbone": backbone,
            "experiment": experiment.name,
            "seeds": len(runs),
            "d_model": config["backbone"]["d_model"],
            "n_layers": config["backbone"]["n_layers"],
        }
        choices = {
            "backbone": list(dict.fromkeys(name for e in experiments for name in e.runs)),
            "experiment": [e.name for e in experiments],
        }
        tags = [*dict.fromkeys(e.tag for e in experiments), *MEDIANS]
        for summary in hparams(values, dict.fromkeys(tags, 0.0), choices):
            writer._get_file_writer().add_summary(summary)
        for tag in MEDIANS:  # what a run logs of them is noise around one number
            value = experiment.latency(backbone) if tag == LATENCY else experiment.median(backbone, tag)
            for step in (0, config["steps"]) if value is not None else ():
                writer.add_scalar(tag, value, step)
        for tag in sorted({tag for run in runs for line in run.metrics for tag in line if tag.startswith(MEANS)}):
            steps, found = experiment.curves(backbone, tag)
            for step, value in _thin(steps, found.mean(0) if len(found) else np.empty(0)):
                writer.add_scalar(tag, value, step)
        if experiment.curve_tag:
            steps, found = experiment.curves(backbone, experiment.curve_tag)
            low, middle, high = band(found)
            for tag, line in zip(_band_tags(experiment), (middle, low, high), strict=True):
                for step, value in _thin(steps, line):
                    writer.add_scalar(tag, value, step)
        gif = next((run.folder / "evaluation.gif" for run in runs if (run.folder / "evaluation.gif").is_file()), None)
        if gif is not None:
            write_gif(writer, "playing/episode", gif.read_bytes(), config["steps"])


def _thin(steps: np.ndarray, values: np.ndarray, most: int = 500) -> Iterator[tuple[int, float]]:
    """At most ``most`` points of a curve, the last one among them."""
    if not len(steps):
        return iter(())
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    return ((int(steps[i]), float(values[i])) for i in chosen)


def _band_tags(experiment: Experiment) -> list[str]:
    return [f"interval_{experiment.name}/{name}" for name in BAND]


def _layout(experiments: list[Experiment]) -> dict[str, Any]:
    """Charts of the Custom Scalars tab."""
    tags = list(dict.fromkeys(experiment.tag for experiment in experiments))
    return {
        "Mean over seeds and 95 % interval": {e.name: ["Margin", _band_tags(e)] for e in experiments if e.curve_tag},
        "Scores": {tag: ["Multiline", [tag]] for tag in tags},
        "Speed": {
            "training tokens/s, more is better": ["Multiline", [SPEED]],
            "µs per step, less is better": ["Multiline", [LATENCY]],
        },
    }


def link(experiments: list[Experiment], base: str = "http://localhost:6006") -> str:
    """The address that opens TensorBoard on this folder: the score on top, one colour for each backbone."""
    tags = dict.fromkeys(e.curve_tag or e.tag for e in experiments)
    pinned = [{"plugin": "scalars", "tag": tag} for tag in (*tags, SPEED)]
    query = {
        "pinnedCards": json.dumps(pinned),
        "smoothing": "0",
        "runColorGroup": "regex:([^/]+)$",
        "runFilter": "/",
    }
    return f"{base}/?{urlencode(query, quote_via=quote)}#timeseries"
