"""The report in Markdown, and its rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from unroll.comparison.report import leaders, too_few
from unroll.comparison.statistics import COVERED, FEWEST
from unroll.tables import exact, markdown_table

WORDS = {"normalized_score": "normalised score", "return_mean": "return"}


def to_markdown(report: dict[str, Any], figures: dict[str, list[str]]) -> str:
    """``figures``: for each experiment the addresses of its pictures."""
    parts = ["# Comparison of backbones", headlines(report)]
    if "overall" in report:
        parts += ["## All experiments together", overall_table(report)]
    for name, experiment in report["experiments"].items():
        parts += [f"## {name}", conditions(experiment), score_table(experiment, report["reference"])]
        parts += [cost_table(experiment)]
        if any(row["calibration"] for row in experiment["backbones"].values()):
            parts += ["Mean return of the episodes, by the return that was asked for:", calibration_table(experiment)]
        parts += [" ".join(f"![{path.rpartition('/')[2]}]({path})" for path in figures.get(name, []))]
    parts += ["## How to read it", explanation(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview(report: dict[str, Any]) -> str:
    """Who leads, and the tables: for the terminal, and TensorBoard's Text tab."""
    parts = [headlines(report)]
    for name, experiment in report["experiments"].items():
        parts += [f"### {name}", score_table(experiment, report["reference"]), cost_table(experiment)]
    return "\n\n".join(parts)


def ranking(report: dict[str, Any]) -> str:
    """Who leads, and a narrow table: score and costs alone."""
    parts = [headlines(report)]
    for name, experiment in report["experiments"].items():
        rows = [
            {
                "": str(place),
                "backbone": f"**{backbone}**",
                WORDS[experiment["score"]]: cell(row["iqm"], row["iqm_interval"]),
                "seeds": str(len(row["scores"])),
                "tokens/s": number(row["train_tokens_per_s"], 0),
                "µs per step": number(row["step_latency_us"], 0),
            }
            for place, (backbone, row) in enumerate(experiment["backbones"].items(), 1)
        ]
        parts += [f"### {name}", table(without_empty(rows))]
    return "\n\n".join(parts)


def headlines(report: dict[str, Any]) -> str:
    """Who leads, and whether that means anything."""
    lines = [f"* **{name}**: {headline(e)}" for name, e in report["experiments"].items()]
    lines += [f"* **not compared**: {name}: {why}" for name, why in report.get("failed", {}).items()]
    return "\n".join(lines)


def headline(experiment: dict[str, Any]) -> str:
    rows = experiment["backbones"]
    first, near = leaders(rows)
    score = f"**{first}** leads with {cell(rows[first]['iqm'], rows[first]['iqm_interval'])}"
    if len(rows) == 1:
        return f"{first} has {cell(rows[first]['iqm'], rows[first]['iqm_interval'])}"
    if rows[first]["iqm_interval"] is None:
        return f"{score}; with fewer than {FEWEST} seeds that is no ranking"
    return f"{score}; not distinguished from it: {', '.join(near)}" if near else f"{score}, ahead of all others"


def conditions(experiment: dict[str, Any]) -> str:
    """What was trained and how it was evaluated, and what was not equal."""
    e, played = experiment, experiment["evaluation"]
    source = f"learned from {e['dataset']}, " if e["dataset"] else ""
    asked = ", ".join(exact(target) for target in played["targets"] if target is not None)
    lines = [
        f"{e['agent']}, {source}played in {e['env']}. {e['steps'][0].upper() + e['steps'][1:]}; "
        f"seed{'s' * (len(e['seeds']) > 1)} {listed(e['seeds'])}, {e['threads'] or 'all'} CPU thread(s) for a run.",
        f"Evaluated: the last checkpoint, {played['episodes']} episodes"
        + (f" for each target of {asked}; scores are those of the highest" if asked else "")
        + f", the same reset seeds for every run (from {played['first_seed']:,}).",
    ]
    if e["score"] == "normalized_score" and e["scale"]:
        lines.append(f"Scores: 0 and 100 are the random and expert returns of {e['scale']}.")
    sizes = [row["parameters"] for row in e["backbones"].values() if row["parameters"]]
    if sizes:
        lines.append(f"Policies of {number(min(sizes), 0)} to {number(max(sizes), 0)} parameters.")
    if e["differences"]:
        lines.append("**The runs differ beside backbone and seed**: " + "; ".join(e["differences"]) + ".")
    return " ".join(lines)


def score_table(experiment: dict[str, Any], reference: str) -> str:
    """Scores, best interquartile mean first. One seed has neither a mean nor a probability."""
    word, several = WORDS[experiment["score"]], len(experiment["seeds"]) > 1
    rows = []
    for name, row in experiment["backbones"].items():
        difference = row.get("paired_difference")
        cells = {"backbone": name}
        if several:
            cells[f"{word}, IQM"] = cell(row["iqm"], row["iqm_interval"])
            cells["mean"] = cell(row["mean"], row["mean_interval"])
            cells["of each seed"] = ", ".join(number(score) for score in row["scores"])
        else:
            cells[word] = number(row["scores"][0])
        if experiment["score"] != "return_mean":
            cells["return"] = number(sum(row["returns"]) / len(row["returns"]))
        cells["return without memory"] = number(row["return_without_memory"])
        if several:
            probability = row.get("probability_of_improvement")
            cells[f"P(better than {reference})"] = cell(probability, row.get("probability_interval"), 2)
        cells[f"minus {reference}, paired"] = cell(difference, row.get("paired_interval"))
        rows.append(cells)
    return table(without_empty(rows))


def cost_table(experiment: dict[str, Any]) -> str:
    rows = [
        {
            "backbone": name,
            "parameters of the policy": number(row["parameters"], 0),
            "d_model": str(row["d_model"]),
            "training tokens/s": number(row["train_tokens_per_s"], 0),
            "µs per step": number(row["step_latency_us"], 0),
            "peak memory, MB": number(row["peak_memory_mb"], 0),
            "evaluation episodes": number(row["evaluation_episodes"], 0),
        }
        for name, row in experiment["backbones"].items()
    ]
    return table(without_empty(rows))


def calibration_table(experiment: dict[str, Any]) -> str:
    rows = []
    for name, row in experiment["backbones"].items():
        achieved = {}
        for target, seeds in row["calibration"]:
            reached = sum(seeds) / len(seeds)
            achieved[exact(target)] = number(reached, 0 if abs(reached) >= 100 else None)
        rows.append({"backbone": name} | achieved)
    return table(rows)


def overall_table(report: dict[str, Any]) -> str:
    reference = report["reference"]
    rows = [
        {
            "backbone": name,
            "IQM": cell(row["iqm"], row["iqm_interval"]),
            "mean": cell(row["mean"], row["mean_interval"]),
            f"P(better than {reference})": cell(
                row.get("probability_of_improvement"), row.get("probability_interval"), 2
            ),
            f"minus {reference}, paired": cell(row.get("paired_difference"), row.get("paired_interval")),
        }
        for name, row in report["overall"].items()
    ]
    return "Normalised scores of the runs of all experiments.\n\n" + table(without_empty(rows))


def explanation(report: dict[str, Any]) -> str:
    """What the numbers are, and how the comparison was made."""
    intervals = (
        f"No interval is given where there are fewer than {FEWEST} seeds: so few say nothing about others."
        if too_few(report)
        else f"In brackets: {COVERED:.0%} intervals, percentiles of a stratified bootstrap over seeds."
    )
    lines = [
        "IQM: the mean of the middle half of the seeds' scores, each the mean of its episodes. " + intervals,
        "P(better): the probability that a run has a higher score than a run of the reference, ties half. Paired: the "
        "mean difference to the reference's run of the same seed, which saw the same data and evaluation episodes. "
        "(After Agarwal et al. 2021, arXiv:2108.13264.)",
        "Speed is the median of what the runs measured while they trained, beside whatever else the machine did; a "
        "step is one environment's. Memory is the most that the run's process had.",
        f"Hyperparameters: {report.get('tuning') or 'the same for every backbone; how they were chosen was not said'}.",
    ]
    if report.get("command"):
        lines.append(f"Command: `{report['command']}`.")
    lines.append(f"Machine: {'; '.join(report['machines'])}.")
    return "\n\n".join(lines)


def to_csv(report: dict[str, Any]) -> str:
    """One line for each experiment and backbone; an interval is two columns."""
    rows = []
    for name, experiment in report["experiments"].items():
        for backbone, row in experiment["backbones"].items():
            flat: dict[str, Any] = {"experiment": name, "backbone": backbone, "score": experiment["score"]}
            for key, value in row.items():
                if key.endswith("interval"):
                    flat[f"{key}_low"], flat[f"{key}_high"] = value or ("", "")
                elif key in ("seeds", "scores", "returns"):
                    flat[key] = " ".join(str(one) for one in value)
                elif key != "calibration":
                    flat[key] = "" if value is None else value
            rows.append(flat)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(rows: Sequence[dict[str, str]]) -> str:
    """A table of rows that have the same columns."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def without_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, without columns that say nothing in any."""
    kept = [key for key in rows[0] if any(row[key] != "–" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def cell(value: float | None, interval: Sequence[float] | None, digits: int | None = None) -> str:
    if value is None:
        return "–"
    shown = number(value, digits)
    return shown if interval is None else f"{shown} ({number(interval[0], digits)} … {number(interval[1], digits)})"


def number(value: float | None, digits: int | None = None) -> str:
    """With one decimal, or two where the number is small, or three significant digits of a very small one."""
    if value is None:
        return "–"
    if digits is None and 0 < abs(value) < 0.1:
        return f"{value:.3g}"
    return f"{value:,.{(1 if abs(value) >= 10 else 2) if digits is None else digits}f}"


def listed(values: Iterable[int]) -> str:
    values = list(values)
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
