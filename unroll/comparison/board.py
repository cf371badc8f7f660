"""The comparison in TensorBoard: the mean over seeds of each backbone as a run, pictures, a table, and a link.

All of it is in one folder, which TensorBoard shows by itself. Among the runs of a large grid it would be lost, and from
41 runs on most of TensorBoard's tabs show none before they are chosen by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from unroll.agents.common.logs import ANEW, write_gif
from unroll.comparison.experiments import Experiment
from unroll.comparison.figures import band
from unroll.comparison.markdown import explanation, overview, ranking
from unroll.comparison.report import PARAMETERS, SPEED
from unroll.comparison.runs import MEMORY, Run
from unroll.errors import ComparisonError

FOLDER = "compare"
LATENCY = "perf/step_latency_us"
MEANS = ("eval/", "train/", "rollout/")  # tags that begin so are shown as the mean over seeds, step by step
MEDIANS = (SPEED, LATENCY, PARAMETERS, MEMORY)  # shown as one number: what a run logs of them is noise around it
BAND = ("mean", "low", "high")  # the order in which a chart with margins takes its tags


def write_board(top: Path, experiments: list[Experiment], report: dict[str, Any]) -> None:
    """Write ``top``/compare anew.

    Raises:
        ComparisonError: there are runs in a folder of that name.
    """
    folder = top / FOLDER
    if next(folder.rglob("config.yaml"), None):
        raise ComparisonError(f"{folder}: holds runs, and the report would replace it; give another folder by --output")
    shutil.rmtree(folder, ignore_errors=True)

    # TensorBoard orders the texts by name.
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("0_ranking", ranking(report))
        writer.add_text("1_tables", overview(report))
        writer.add_text("2_how_to_read_it", explanation(report))
        writer.add_custom_scalars(_layout(experiments))

    # A run of TensorBoard for each backbone.
    for experiment in experiments:
        for backbone in experiment.runs:
            with SummaryWriter(str(folder / experiment.name / backbone)) as writer:
                _write_backbone(writer, experiments, experiment, backbone)


def write_figures(top: Path, name: str, figures: dict[str, Figure], step: int) -> None:
    """Write the pictures of an experiment into the Images tab."""
    with SummaryWriter(str(top / FOLDER / name)) as writer:
        for title, figure in figures.items():
            writer.add_figure(f"{name}/{title}", figure, step, close=False)


def _write_backbone(
    writer: SummaryWriter, experiments: list[Experiment], experiment: Experiment, backbone: str
) -> None:
    """Write one backbone of an experiment as a run: its HParams, the curves over its seeds, and an episode."""
    runs = experiment.runs[backbone]
    _write_hparams(writer, experiments, experiment, backbone)
    _write_medians(writer, experiment, backbone)

    # The means keep the tags of the runs, so that a chart shows both.
    for tag in _logged(runs, MEANS):
        steps, values = experiment.curves(backbone, tag)
        if len(values):
            _write_curve(writer, tag, steps, values.mean(0))
    if experiment.curve_tag:
        steps, values = experiment.curves(backbone, experiment.curve_tag)
        low, middle, high = band(values)
        for tag, line in zip(_band_tags(experiment), (middle, low, high), strict=True):
            _write_curve(writer, tag, steps, line)

    # One episode is enough to see how a backbone plays.
    for run in runs:
        gif = run.folder / "evaluation.gif"
        if gif.is_file():
            write_gif(writer, "playing/episode", gif.read_bytes(), runs[0].config["steps"])
            break


def _write_hparams(writer: SummaryWriter, experiments: list[Experiment], experiment: Experiment, backbone: str) -> None:
    """Write the line of the HParams tab."""
    runs = experiment.runs[backbone]
    config = runs[0].config
    values = {
        "backbone": backbone,
        "experiment": experiment.name,
        "seeds": len(runs),
        "d_model": config["backbone"]["d_model"],
        "n_layers": config["backbone"]["n_layers"],
    }
    # The values that the tab offers to filter by.
    backbones: dict[str, None] = {}
    for other in experiments:
        backbones |= dict.fromkeys(other.runs)
    choices = {"backbone": list(backbones), "experiment": [e.name for e in experiments]}
    metrics = dict.fromkeys([*(e.tag for e in experiments), *MEDIANS], 0.0)
    for summary in hparams(values, metrics, choices):
        writer._get_file_writer().add_summary(summary)


def _write_medians(writer: SummaryWriter, experiment: Experiment, backbone: str) -> None:
    """Write the costs of a backbone as level lines."""
    # Two points make a line.
    last_step = experiment.runs[backbone][0].config["steps"]
    for tag in MEDIANS:
        value = experiment.cost(backbone, tag)
        if tag == LATENCY:
            value = experiment.latency(backbone)
        if value is not None:
            writer.add_scalar(tag, value, 0)
            writer.add_scalar(tag, value, last_step)


def _logged(runs: Iterable[Run], beginnings: tuple[str, ...]) -> list[str]:
    """Return the tags that the runs logged and that begin in one of these ways, in order."""
    tags: set[str] = set()
    for run in runs:
        for line in run.metrics:
            tags.update(tag for tag in line if tag.startswith(beginnings))
    return sorted(tags - {ANEW})  # which is a mark, and no metric


def _write_curve(writer: SummaryWriter, tag: str, steps: np.ndarray, values: np.ndarray) -> None:
    for step, value in _thinned(steps, values):
        writer.add_scalar(tag, value, step)


def _thinned(steps: np.ndarray, values: np.ndarray, most: int = 500) -> Iterator[tuple[int, float]]:
    """Yield at most ``most`` points of a curve, its last one among them."""
    if len(steps) == 0:
        return
    chosen = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    for i in np.unique(chosen):
        yield int(steps[i]), float(values[i])


def _band_tags(experiment: Experiment) -> list[str]:
    return [f"interval_{experiment.name}/{name}" for name in BAND]


def _layout(experiments: list[Experiment]) -> dict[str, Any]:
    """Return the charts of the Custom Scalars tab."""
    bands = {e.name: ["Margin", _band_tags(e)] for e in experiments if e.curve_tag}
    scores = {e.tag: ["Multiline", [e.tag]] for e in experiments}
    speed = {
        "training tokens/s, more is better": ["Multiline", [SPEED]],
        "µs per step, less is better": ["Multiline", [LATENCY]],
    }
    return {"Mean over seeds and 95 % interval": bands, "Scores": scores, "Speed": speed}


def link(experiments: list[Experiment], base: str = "http://localhost:6006") -> str:
    """Return the address that opens TensorBoard with the scores on top and one colour for each backbone."""
    tags = dict.fromkeys(e.curve_tag or e.tag for e in experiments)
    pinned = [{"plugin": "scalars", "tag": tag} for tag in (*tags, SPEED)]
    query = {
        "pinnedCards": json.dumps(pinned),
        "smoothing": "0",
        "runColorGroup": "regex:([^/]+)$",
        "runFilter": "/",
    }
    return f"{base}/?{urlencode(query, quote_via=quote)}#timeseries"
