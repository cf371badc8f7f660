"""Compare backbones, their options, or fields: unroll compare --config ppo/tmaze --backbones mingru,gru [--key value …]

Trains every backbone on every config with every seed, as ordinary runs of unroll train whose flags hold for all of
them, and reports what came of it. Repeat the command to go on after an interruption. Run it on several machines that
share the disk to divide the work. --from FOLDER reports on runs that exist, without training."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from unroll.agents import AGENTS, schemas
from unroll.commands.process import Reporting, expand_home, typed
from unroll.comparison.variants import split_backbones
from unroll.configs import Parser, load_config, train_parser
from unroll.configs.loading import find_config
from unroll.configs.parser import suggest

if TYPE_CHECKING:
    from rich.console import Console

    from unroll.comparison.runs import Run

GIVEN = {  # flags of unroll train that the grid sets
    "--backbone.name": "--backbones says which",
    "--backbone.match_parameters": "--match_parameters says how many",
    "--seed": "--seeds says how many, from 0 on",
    "--run_dir": "--output is the folder of all runs",
    "--resume": "a repeated command goes on by itself",
    "--experiment": "an experiment has the name of its config file",
    "--evaluation.video": "--video says whether",
}
FREE_FLAGS = ("--backbone.options.", "--env_kwargs.", "--evaluation.env_kwargs.")  # of values that have any name
CLUSTER_FLAGS = ("--cluster", "--workers", "--cluster_options")
REPORT_FLAGS = ("--from", "--output", "--reference", "--tuning")  # those that say something without training


def make_parser() -> Parser:
    parser = Parser(prog="unroll compare", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", nargs="+", metavar="FILE", help="config files of unroll train, each an experiment")
    add(
        "--backbones",
        nargs="+",
        metavar="NAME",
        help="names, separated by commas or spaces; module:Class is imported; mingru:expansion=2,conv=4 has options; "
        "default with --vary: the config's",
    )
    add(
        "--vary",
        nargs="+",
        default=[],
        metavar="FIELD=A,B",
        help="a row for each value of a field of the config: learning_rate=1e-3,3e-4; of several fields, for each "
        "combination",
    )
    add("--seeds", type=PositiveInt, default=5, help="how many, from 0 on")
    add("--jobs", type=PositiveInt, help="runs at a time; default: one for each core, one where there is a GPU")
    add("--threads", type=PositiveInt, help="CPU threads of each run; default: the cores over --jobs")
    add(
        "--match_parameters",
        type=NonNegativeInt | None,
        help="parameters of every backbone; 0: the width in the config; default: as many as the first backbone has",
    )
    add(
        "--minutes",
        type=PositiveFloat,
        help="equal time: the steps that each makes in it, without evaluations and pretraining",
    )
    add("--output", type=str, help="folder of runs and report; default: runs/compare-<configs>, or the first of --from")
    add("--reference", type=str, help="backbone that the others are compared with; default: the first")
    add("--tuning", type=str, help="how the hyperparameters were chosen: a sentence for the report")
    add("--video", type=bool, default=True, help="a GIF of an episode of each backbone, where rendering works")
    add("--from", dest="folders", nargs="+", metavar="FOLDER", help="report on the runs in and below these folders")
    add("--cluster", type=Literal["slurm", "local"] | None, help="let submitit start this command there")
    add("--workers", type=PositiveInt, default=1, help="how many of them, each with --jobs runs at a time")
    add("--cluster_options", type=dict[str, Any], default={}, help="submitit's: '{slurm_partition: gpu}'")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Train and report, or report alone; return the exit code.

    That is 1 if a run failed, and 128 + n after signal n.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    parser = make_parser()
    own, flags = split(parser, arguments)
    options = parser.parse_args(own)
    expand_home(options, "output", "folders")
    command = f"{typed('compare')} {shlex.join(arguments)}"
    if options.folders:
        for flag in typed_flags(arguments):
            if flag not in REPORT_FLAGS:
                parser.error(f"{flag} is for training, --from for runs that exist")
        with Reporting("unroll compare") as report:
            report_only(options, command)
        return report.code

    if not options.config or not (options.backbones or options.vary):
        parser.error("--config and --backbones or --vary are needed, or --from with folders of runs")
    if not options.cluster:
        for flag in ("--workers", "--cluster_options"):
            if flag in typed_flags(arguments):
                parser.error(f"{flag} is for --cluster, which is not given; --jobs says how many runs at a time")
    says_steps = [*flags, *(f"--{word}" for word in options.vary)]
    if options.minutes and any(word.partition("=")[0] == "--steps" for word in says_steps):
        parser.error("--minutes and --steps: one of them says how long a run is")
    for word in options.vary:
        field = f"--{word.partition('=')[0]}"
        if field in GIVEN:
            parser.error(f"--vary {word}: {field} is not for a grid: {GIVEN[field]}")
    options.config = [find_config(name) for name in options.config]
    if options.backbones:
        options.backbones = split_backbones(options.backbones)
    else:
        first = load_config(["--config", options.config[0], *flags], schemas(), "unroll compare")
        options.backbones = [first.backbone.name]
    options.output = Path(options.output or f"runs/compare-{'-'.join(Path(path).stem for path in options.config)}")
    with Reporting("unroll compare") as report:
        if options.cluster:
            report.code = submit_workers(options, flags, arguments)
        else:
            report.code = compare(options, flags, arguments, command)
    return report.code


def split(parser: Parser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments into this command's own and those for ``unroll train``.

    The files of all --config flags come together.
    """
    known = parser.flags()
    trains: set[str] = set()
    for agent in AGENTS:
        trains.update(train_parser(schemas(), agent).flags())
    parser.hint = lambda word: suggest(word, [*known, *trains])

    own: list[str] = []
    flags: list[str] = []
    configs: list[str] = []
    target = own
    for word in arguments:
        name, _, value = word.partition("=")
        if name == "--config":
            target = configs
            if value:
                configs.append(value)
            continue
        if word.startswith("--"):
            if name in GIVEN:
                parser.error(f"{name} is not for a grid: {GIVEN[name]}")
            # A flag that nobody knows stays with our own parser, which explains it.
            theirs = name in trains or name.startswith(FREE_FLAGS)
            target = own
            if theirs and name not in known:
                target = flags
        # A value follows its flag.
        target.append(word)
    if configs:
        own += ["--config", *configs]
    return own, flags


def compare(options: Namespace, flags: list[str], arguments: list[str], command: str) -> int:
    """Train what is missing and report on all; return the exit code."""
    import torch

    from unroll.commands.console import Output
    from unroll.comparison.live import Show
    from unroll.comparison.plan import missed_sizes, plan
    from unroll.comparison.workers import Stopped, Workers

    console = Output()
    options.jobs = options.jobs or default_jobs(torch.cuda.is_available())

    # Train what no command has finished yet.
    cells = plan(options, flags, arguments)
    for note in missed_sizes(cells):
        console.print(f"note: {note}")
    workers = Workers(cells, options.jobs)
    try:
        with Show(workers, console) as show:
            workers.run(show)
    except Stopped as stopped:
        console.print(f"stopped; what ran has saved, and the same command goes on:\n{command}")
        return 128 + stopped.number

    # Report on what is finished: a run that failed does not keep the others from being compared.
    finished = [cell.read() for cell in cells if cell.finished and cell not in workers.failed]
    facts = {
        "command": command,
        "tuning": options.tuning,
        "failed": {cell.name: why for cell, why in workers.failed.items()},
    }
    for cell, why in workers.failed.items():
        print(f"unroll compare: {cell.name} failed: {why}", file=sys.stderr)
    if options.reference not in (None, *(run.backbone for run in finished)):
        missing = f"no run of the reference {options.reference} is finished"
        print(f"unroll compare: {missing}; the first row stands in", file=sys.stderr)
        options.reference = None
    if finished:
        write(options, finished, options.output, facts, console)
    return int(bool(workers.failed))


def default_jobs(has_gpu: bool) -> int:
    """Return the number of runs at a time: one for each core, or one if there is a GPU, which they would share."""
    if has_gpu:
        return 1
    return os.cpu_count() or 1


def submit_workers(options: Namespace, flags: list[str], arguments: list[str]) -> int:
    """Have a scheduler run this command ``--workers`` times, and wait for it."""
    import torch

    from unroll.commands.console import Output
    from unroll.comparison.cluster import run_workers
    from unroll.comparison.plan import plan

    console = Output()
    options.jobs = options.jobs or default_jobs(torch.cuda.is_available())
    plan(options, flags, arguments)  # so that a mistake is told here, and not by each worker

    words = without(arguments, CLUSTER_FLAGS)
    logs = options.output / "workers"
    failed = run_workers(words, options.cluster, options.workers, options.cluster_options, logs, console.print)
    for job, why in failed.items():
        print(f"unroll compare: job {job} failed: {why}", file=sys.stderr)
    report = options.output / "comparison.md"
    if report.is_file():
        console.print(report.read_text())
    return int(bool(failed))


def without(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Return the arguments without these flags and their values."""
    kept = []
    dropping = False
    for word in arguments:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in flags
        if not dropping:
            kept.append(word)
    return kept


def typed_flags(arguments: list[str]) -> list[str]:
    """Return the flags that a command line has, without their values."""
    return [word.partition("=")[0] for word in arguments if word.startswith("--")]


def report_only(options: Namespace, command: str) -> None:
    """Report on runs that exist."""
    from unroll.commands.console import Output
    from unroll.comparison.runs import find_runs

    console = Output()
    left_out: dict[str, str] = {}
    runs = find_runs((Path(folder) for folder in options.folders), left_out)
    output = Path(options.output or options.folders[0])
    write(options, runs, output, {"command": command, "tuning": options.tuning, "failed": left_out}, console)


def write(options: Namespace, runs: list[Run], output: Path, facts: dict[str, Any], console: Console) -> None:
    """Write the report in all its forms, print it, and say where it is."""
    from unroll.comparison.board import FOLDER, link
    from unroll.comparison.experiments import group
    from unroll.comparison.markdown import overview
    from unroll.comparison.publish import SHEET, publish
    from unroll.comparison.report import make_report
    from unroll.comparison.variants import make_variants
    from unroll.policies.backbones import BACKBONES

    # Rows are reported in the order in which they were asked for.
    names = list(BACKBONES)
    if options.backbones:
        names = [variant.label for variant in make_variants(options.backbones, options.vary)]
    experiments = group(runs, names)
    report = make_report(experiments, options.reference, facts)
    publish(output, experiments, report)
    console.print(f"\n{overview(report)}\n")
    console.print(f"report   {output / 'comparison.md'}, .csv, .json and figures/")
    console.print(f"watch    tensorboard --logdir {shlex.quote(str(output / FOLDER))}\nopen     {link(experiments)}")
    console.print(f"seeds    tensorboard --logdir {shlex.quote(str(output))}")
    console.print(f"picture  {output / SHEET}")
