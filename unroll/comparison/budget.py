"""What many runs will take, from finished ones: python -m unroll.comparison.budget runs/… --runs 1000 --machines 10 --jobs 2

Disk, core-hours, days and lost work for this many runs like those in and below the folders, which are one kind of run
for each experiment; the runs are divided equally among the kinds."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from unroll.commands.process import run_command
from unroll.configs import Parser

if TYPE_CHECKING:
    from unroll.comparison.runs import Run

PARTS = ("checkpoints", "events", "rest")
ROOT = Path(__file__).resolve().parents[1]


Cost = list[float]  # of one run or of many, by the columns of its table


def make_parser() -> Parser:
    parser = Parser(prog="python -m unroll.comparison.budget", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="finished runs, or folders of them")
    add("--runs", type=PositiveInt, default=1000, help="how many are planned")
    add("--machines", type=PositiveInt, default=1, help="that share the disk")
    add("--jobs", type=PositiveInt, default=1, help="runs at a time on each of them")
    add("--kills", type=NonNegativeFloat, default=1.0, help="how often a day a machine is lost with all its runs")
    add("--price", type=NonNegativeFloat, default=0.0, help="of a core for an hour, in any currency")
    return parser


def main(arguments: list[str]) -> int:
    return run_command("unroll.comparison.budget", budget, make_parser().parse_args(arguments))


def budget(options: Namespace) -> int:
    from unroll.agents.common.machine import machine
    from unroll.comparison.runs import find_runs

    kinds: dict[str, list[Cost]] = {}
    for run in find_runs(Path(folder) for folder in options.folders):
        kinds.setdefault(run.experiment, []).append(measure(run))
    start = start_seconds()
    print(f"Measured in {sum(map(len, kinds.values()))} runs; a process starts in {start:.1f} s here: {machine()}.\n")
    parts = [*PARTS, "files", "seconds", "threads", "seconds between checkpoints"]
    rows = {f"one run of {kind}": one(costs) for kind, costs in kinds.items()}
    print(table([f"{part}, MB" for part in PARTS] + parts[len(PARTS) :], rows))
    print(
        f"\n{options.runs:,} runs on {options.machines} machines, {options.jobs} at a time on each; a machine is lost "
        f"{options.kills:g} times a day:\n"
    )
    rows = {f"all runs of {kind}": many(rows[f"one run of {kind}"], start, options, len(kinds)) for kind in kinds}
    if len(rows) > 1:
        rows["all runs"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(table(["disk, GB", "files", "core-hours", "of these done twice", "days", f"cost at {options.price:g}"], rows))
    return 0


def measure(run: Run) -> Cost:
    """What a finished run took; its restarts count by what they did, not by the time between them.

    Raises:
        ComparisonError: it has no events.
    """
    from unroll.errors import ComparisonError

    sizes = {path.relative_to(run.folder): path.stat().st_size for path in run.folder.rglob("*") if path.is_file()}
    seconds = sum(map(seconds_of, run.folder.glob("events.out.tfevents.*")))
    if not seconds:
        raise ComparisonError(f"{run.folder}: has no TensorBoard events, which say how long it took")
    parts = dict.fromkeys(PARTS, 0.0)
    for path, size in sizes.items():
        kind = path.parts[0].partition(".")[0]
        parts[kind if kind in parts else "rest"] += size / 1e6
    threads = run.config["threads"] or int(re.findall(r"(\d+) cores", run.evaluation["machine"])[0])
    between = seconds * min(1.0, run.config["checkpoint_every"] / run.config["steps"])
    return Cost([*parts.values(), len(sizes), seconds, threads, between])


def seconds_of(events: Path) -> float:
    """From the first event of a file to its last."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    times = [event.wall_time for event in EventFileLoader(str(events)).Load()]
    return max(times, default=0.0) - min(times, default=0.0)


def start_seconds() -> float:
    """How long a process of train.py imports before it does anything."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import configs.decision_job, unroll.agents.ppo.algorithm"], cwd=ROOT, check=True
    )
    return time.perf_counter() - began


def many(mean: Cost, start: float, options: Namespace, n_kinds: int) -> Cost:
    """What the share of the runs that are of this kind takes: GB, files, core-hours, core-hours of work that is done
    twice, days, cost. A machine that is lost costs each run on it half of the time between two checkpoints and a start,
    on average."""
    *sizes, files, seconds, threads, between = mean
    runs = options.runs / n_kinds
    worked = runs * (seconds + start)
    twice = worked * options.kills / 86400 * (between / 2 + start)
    hours = (worked + twice) * threads / 3600
    days = (worked + twice) / 86400 / (options.machines * options.jobs)
    return [runs * sum(sizes) / 1000, runs * files, hours, twice * threads / 3600, days, hours * options.price]


def one(costs: list[Cost]) -> Cost:
    return [statistics.mean(column) for column in zip(*costs, strict=True)]


def table(columns: list[str], rows: dict[str, Cost]) -> str:
    """Markdown."""
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(number(value) for value in values)} |" for name, values in rows.items()]
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
