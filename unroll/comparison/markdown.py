"""The report in Markdown, and its rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from unroll.agents.evaluation.scoring import NOTHING, task_in_words
from unroll.comparison.report import leaders, too_few
from unroll.comparison.statistics import COVERED, FEWEST
from unroll.tables import exact, markdown_table

WORDS = {"normalized_score": "normalised score", "return_mean": "return"}
Cells = dict[str, str]  # a row of a table, by column


def to_markdown(report: dict[str, Any], figures: dict[str, list[str]]) -> str:
    """Write comparison.md. ``figures`` has the addresses of the pictures of each experiment."""
    # The answer comes first, then the tables behind it, then how to read them.
    parts = ["# Comparison of backbones", headlines(report)]
    if "overall" in report:
        parts += ["## All experiments together", overall_table(report)]

    for name, experiment in report["experiments"].items():
        parts += [f"## {name}", conditions(experiment)]
        parts += [score_table(experiment, report["reference"]), cost_table(experiment)]
        if any(row["calibration"] for row in experiment["backbones"].values()):
            parts += ["Mean return of the episodes, by the return that was asked for:", calibration_table(experiment)]
        pictures = [f"![{path.rpartition('/')[2]}]({path})" for path in figures.get(name, [])]
        parts.append(" ".join(pictures))

    parts += ["## How to read it", explanation(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview(report: dict[str, Any]) -> str:
    """Write who leads, and the tables, for the terminal and for TensorBoard's Text tab."""
    parts = [headlines(report)]
    for name, experiment in report["experiments"].items():
        parts += [f"### {name}", unequal(experiment), score_table(experiment, report["reference"])]
        parts.append(cost_table(experiment))
    return "\n\n".join(part for part in parts if part)


def ranking(report: dict[str, Any]) -> str:
    """Write who leads, and a narrow table of scores and costs alone."""
    parts = [headlines(report)]
    for name, experiment in report["experiments"].items():
        rows = []
        for place, (backbone, row) in enumerate(experiment["backbones"].items(), 1):
            cells = {
                "": str(place),
                "backbone": f"**{backbone}**",
                WORDS[experiment["score"]]: cell(row["iqm"], row["iqm_interval"]),
                "seeds": str(len(row["scores"])),
                "tokens/s": number(row["train_tokens_per_s"], 0),
                "µs per step": number(row["step_latency_us"], 0),
            }
            rows.append(cells)
        parts += [f"### {name}", unequal(experiment), table(without_empty(rows))]
    return "\n\n".join(part for part in parts if part)


def headlines(report: dict[str, Any]) -> str:
    """Write a line for each experiment: who leads, and whether that means anything."""
    lines = []
    for name, experiment in report["experiments"].items():
        lines.append(f"* **{name}**: {headline(experiment)}")
    for name, why in report.get("failed", {}).items():
        lines.append(f"* **not compared**: {name}: {why}")
    return "\n".join(lines)


def headline(experiment: dict[str, Any]) -> str:
    """Say who leads an experiment, and which others are not distinguished from it."""
    rows = experiment["backbones"]
    first, near = leaders(rows)
    score = cell(rows[first]["iqm"], rows[first]["iqm_interval"])
    if len(rows) == 1:
        return f"{first} has {score}"

    # A lead is worth what its interval says.
    leads = f"**{first}** leads with {score}"
    if rows[first]["iqm_interval"] is None:
        return f"{leads}; with fewer than {FEWEST} seeds that is no ranking"
    if near:
        return f"{leads}; not distinguished from it: {', '.join(near)}"
    return f"{leads}, ahead of all others"


def conditions(experiment: dict[str, Any]) -> str:
    """Say what was trained, how it was evaluated, and what was not equal."""
    sentences = [trained(experiment), evaluated(experiment["evaluation"])]
    if experiment["score"] == "normalized_score" and experiment["scale"]:
        sentences.append(f"Scores: 0 and 100 are the random and expert returns of {experiment['scale']}.")

    # What may make the comparison unfair.
    if experiment["parameters"]:
        sizes = dict.fromkeys(number(size, 0) for size in experiment["parameters"])
        sentences.append(f"Policies of {' to '.join(sizes)} parameters.")
    sentences.append(unequal(experiment))
    return " ".join(sentence for sentence in sentences if sentence)


def unequal(experiment: dict[str, Any]) -> str:
    """Say what makes the comparison unfair, and that rows have other seeds; nothing if they do not and nothing does."""
    sentences = []
    if experiment["differences"]:
        sentences.append(f"**The runs differ beside backbone and seed**: {'; '.join(experiment['differences'])}.")
    seeds = {name: listed(row["seeds"]) for name, row in experiment["backbones"].items()}
    if len(set(seeds.values())) > 1:
        rows = "; ".join(f"{name} {its}" for name, its in seeds.items())
        sentences.append(
            f"**The rows have different seeds**: {rows}. A paired difference rests on those that both rows have."
        )
    return " ".join(sentences)


def trained(experiment: dict[str, Any]) -> str:
    """Say what learned from what, for how long."""
    source = ""
    if experiment["dataset"]:
        source = f"learned from {experiment['dataset']}, "
    steps = experiment["steps"]
    seeds = experiment["seeds"]
    plural = "s" if len(seeds) > 1 else ""
    played = task_in_words(experiment["env"], experiment["env_kwargs"])
    return (
        f"{experiment['agent']}, {source}played in {played}. {steps[0].upper()}{steps[1:]}; "
        f"seed{plural} {listed(seeds)}; {threads_in_words(experiment['threads'])} for a run."
    )


def threads_in_words(numbers: list[int]) -> str:
    """Name all numbers of threads that runs had; 0 are all that there are."""
    words = [str(number) for number in numbers if number]
    if 0 in numbers:
        words.append("all")
    return f"{' and '.join(words)} CPU thread{'s' if words != ['1'] else ''}"


def evaluated(evaluation: dict[str, Any]) -> str:
    """Say how the runs were scored."""
    targets = ", ".join(exact(target) for target in evaluation["targets"] if target is not None)
    asked = ""
    if targets:
        asked = f" for each target of {targets}; scores are those of the highest"
    episodes = "not all runs in equally many episodes"
    if evaluation["episodes"] is not None:
        episodes = f"{evaluation['episodes']} episodes"
    same = ""
    if evaluation["first_seed"] is not None:
        same = f", the same reset seeds for every run (from {evaluation['first_seed']:,})"
    how = ""
    if evaluation["memory"] not in (None, "carried"):
        how += f", memory: {evaluation['memory']}"
    if evaluation["actions"]:  # the likeliest ones are the rule
        how += f", {evaluation['actions']}"
    if evaluation["devices"]:
        how += f", on {' and '.join(evaluation['devices'])}"
    cut = ""
    if evaluation["cut"]:
        after = f" after {evaluation['max_steps']:,} steps" if evaluation["max_steps"] else ""
        cut = f" {evaluation['cut']:,} of {evaluation['played']:,} episodes were cut{after}."
    return f"Evaluated: the last checkpoint, {episodes}{asked}{same}{how}.{cut}"


def score_table(experiment: dict[str, Any], reference: str) -> str:
    """Write the scores, the best first. One seed has neither a mean nor a probability."""
    word = WORDS[experiment["score"]]
    several = len(experiment["seeds"]) > 1
    rows = []
    for name, row in experiment["backbones"].items():
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
            cells |= better_cell(row, reference)
        cells |= paired_cell(row, reference)
        rows.append(cells)
    return table(without_empty(rows))


def better_cell(row: dict[str, Any], reference: str) -> Cells:
    """Return the column of the probability of improvement; the reference itself has none."""
    value = cell(row.get("probability_of_improvement"), row.get("probability_interval"), 2)
    return {f"P(better than {reference})": value}


def paired_cell(row: dict[str, Any], reference: str) -> Cells:
    """Return the column of the paired difference; the reference itself has none."""
    return {f"minus {reference}, paired": cell(row.get("paired_difference"), row.get("paired_interval"))}


def cost_table(experiment: dict[str, Any]) -> str:
    """Write sizes, speeds and what the evaluation cost."""
    rows = []
    for name, row in experiment["backbones"].items():
        cells = {
            "backbone": name,
            "parameters of the policy": number(row["parameters"], 0),
            "d_model": str(row["d_model"] or NOTHING),
            "training tokens/s": number(row["train_tokens_per_s"], 0),
            "µs per step": number(row["step_latency_us"], 0),
            "peak memory, MB": number(row["peak_memory_mb"], 0),
            "evaluation episodes": number(row["evaluation_episodes"], 0),
        }
        rows.append(cells)
    return table(without_empty(rows))


def calibration_table(experiment: dict[str, Any]) -> str:
    """Write the mean return for each return that was asked for. Not every row was asked for all of them."""
    asked = {name: dict(row["calibration"]) for name, row in experiment["backbones"].items() if row["calibration"]}
    targets = sorted({target for returns in asked.values() for target in returns})
    rows = []
    for name, returns in asked.items():
        cells = {"backbone": name}
        for target in targets:
            cells[exact(target)] = reached_cell(returns.get(target))
        rows.append(cells)
    return table(rows)


def reached_cell(returns: list[float] | None) -> str:
    """Write the mean of what the seeds reached; None: they were not asked."""
    if returns is None:
        return NOTHING
    reached = sum(returns) / len(returns)
    return number(reached, 0 if abs(reached) >= 100 else None)


def overall_table(report: dict[str, Any]) -> str:
    """Write the scores over all experiments."""
    rows = []
    for name, row in report["overall"].items():
        cells = {
            "backbone": name,
            "IQM": cell(row["iqm"], row["iqm_interval"]),
            "mean": cell(row["mean"], row["mean_interval"]),
            **better_cell(row, report["reference"]),
            **paired_cell(row, report["reference"]),
        }
        rows.append(cells)
    words = "Normalised scores of the runs of all experiments, which weigh the same."
    for name, missing in report["not_overall"].items():
        words += f" Not in this table: {name}, which has no run in {', '.join(missing)}."
    return f"{words}\n\n{table(without_empty(rows))}"


def explanation(report: dict[str, Any]) -> str:
    """Say what the numbers are, and how the comparison was made."""
    notes = []
    if any(row["iqm_interval"] for each in report["experiments"].values() for row in each["backbones"].values()):
        notes.append(f"In brackets: {COVERED:.0%} intervals, percentiles of a stratified bootstrap over seeds.")
    if too_few(report):
        notes.append(
            f"No interval is given where there are fewer than {FEWEST} seeds: so few say nothing about others."
        )
    saw = ", which saw the same data and evaluation episodes"
    if any(experiment["differences"] for experiment in report["experiments"].values()):
        saw = ""
    tuning = report.get("tuning") or "the same for every backbone; how they were chosen was not said"

    lines = [
        f"IQM: the mean of the middle half of the seeds' scores, each the mean of its episodes. {' '.join(notes)}",
        "P(better): the probability that a run has a higher score than a run of the reference, ties half. Paired: the "
        f"mean difference to the reference's run of the same seed{saw}. "
        "(After Agarwal et al. 2021, arXiv:2108.13264.)",
        "Speed is the median of what the runs measured while they trained, beside whatever else the machine did; a "
        "step is one environment's. Memory is the most that the run's process had.",
        f"Hyperparameters: {tuning}.",
    ]
    if report.get("command"):
        lines.append(f"Command: `{report['command']}`.")
    lines.append(f"Machine: {'; '.join(report['machines'])}.")
    return "\n\n".join(lines)


def to_csv(report: dict[str, Any]) -> str:
    """Write comparison.csv: one line for each experiment and backbone."""
    rows = []
    for name, experiment in report["experiments"].items():
        for backbone, row in experiment["backbones"].items():
            about = {"experiment": name, "backbone": backbone, "score": experiment["score"]}
            rows.append(about | csv_fields(row))

    # The reference has fewer columns than the others.
    columns: dict[str, None] = {}
    for fields in rows:
        columns |= dict.fromkeys(fields)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row: an interval is two of them, and a value for each seed is one with spaces."""
    fields: dict[str, Any] = {}
    for key, value in row.items():
        if key == "calibration":
            continue
        if key.endswith("interval"):
            low, high = value or ("", "")
            fields[f"{key}_low"] = low
            fields[f"{key}_high"] = high
        elif key in ("seeds", "scores", "returns"):
            fields[key] = " ".join(str(part) for part in value)
        elif value is None:
            fields[key] = ""
        else:
            fields[key] = value
    return fields


def table(rows: Sequence[Cells]) -> str:
    """Write a table of rows that have the same columns."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def without_empty(rows: Sequence[Cells]) -> list[Cells]:
    """Return the rows without the columns that have no value in any of them."""
    kept = [column for column in rows[0] if any(row[column] != NOTHING for row in rows)]
    return [{column: row[column] for column in kept} for row in rows]


def cell(value: float | None, interval: Sequence[float] | None, digits: int | None = None) -> str:
    """Write a number with its interval in brackets, if it has one."""
    shown = number(value, digits)
    if value is None or interval is None:
        return shown
    low, high = interval
    return f"{shown} ({number(low, digits)} … {number(high, digits)})"


def number(value: float | None, digits: int | None = None) -> str:
    """Write a number with so many decimals.

    By default with one, with two where it is below 10, and with three significant digits where it is below 0.1.
    """
    if value is None:
        return NOTHING
    if digits is None:
        if 0 < abs(value) < 0.1:
            return f"{value:.3g}"
        digits = 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def listed(values: list[int]) -> str:
    """Write numbers in increasing order, as a range if none is left out."""
    first = values[0]
    last = values[-1]
    if len(values) > 2 and values == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, values))
