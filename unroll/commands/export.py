"""Write one step of a trained policy for ONNX Runtime or torch.export: unroll export runs/… [--format onnx|pt2]"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from unroll.agents import algorithm_of
from unroll.commands.process import Reporting, expand_home
from unroll.configs import Parser
from unroll.own import import_backbone, import_environment
from unroll.zoo import find_run, results_folder


def main(arguments: list[str] | None = None) -> int:
    """Export a run; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = Parser(prog="unroll export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("run", help="a run folder, one of its checkpoints, or a run of the package, zoo:NAME")
    add("--format", choices=["onnx", "pt2"], default="onnx", help="pt2: torch.export's")
    add("--output", help="folder; default: onnx or pt2 in the run folder")
    add("--memory", choices=["carried"], help="export a carried memory, also of an agent that acts with a window")
    add("--backbone", metavar="MODULE:CLASS", help="import the run's backbone, one of your own")
    add("--env", metavar="MODULE:ID", help="import the run's environment, one of your own")
    options = parser.parse_args(arguments)
    expand_home(options, "run", "output")
    with Reporting("unroll export") as report:
        import_backbone(arguments, "--backbone", options.backbone)
        import_environment(arguments, "--env", options.env)
        export(options)
    return report.code


def export(options: Namespace) -> None:
    """Write the folder, and say what is in it."""
    from unroll.agents.common.checkpoint import latest_checkpoint
    from unroll.export import write_export
    from unroll.export.folder import check_free
    from unroll.export.formats import require_packages

    require_packages(options.format)
    checkpoint = latest_checkpoint(find_run(options.run).absolute())
    run = checkpoint
    if checkpoint.parent.name == "checkpoints":
        run = checkpoint.parents[1]
    if options.output:
        folder = Path(options.output).absolute()
    else:
        # that of the last checkpoint is the run's
        last = checkpoint == latest_checkpoint(run)
        folder = results_folder(options.run, run) / (options.format if last else f"{options.format}_{checkpoint.name}")
    check_free(folder)  # before seconds of work

    step, facts = algorithm_of(checkpoint).step(checkpoint, options.memory)
    differs = write_export(step, facts, checkpoint, options.format, folder)
    files = f"policy.{options.format}, policy.json, README.md, run.py, play.py"
    print(f"{folder}: {files}; differs from PyTorch by {differs:.1g}")
    print(f"try it: python {folder / 'play.py'}")
