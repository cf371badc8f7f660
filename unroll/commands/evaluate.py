"""Play a trained run and score it: unroll evaluate runs/… [--episodes N] [--targets 3600 1800] [--memory window]

zoo:cartpole_masked/mingru is a run that comes with the package; what is made of it is written below runs/zoo."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from unroll.agents import algorithm_of, schemas
from unroll.agents.algorithm import PlayOptions
from unroll.commands.process import Reporting, expand_home
from unroll.configs import Parser, RunConfig, load_saved
from unroll.configs.sizes import Seed
from unroll.errors import EnvError, UserError
from unroll.own import import_backbone, import_environment
from unroll.zoo import find_run, results_folder


def make_parser() -> Parser:
    parser = Parser(prog="unroll evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("run", help="a run folder, one of its checkpoints, or a run of the package, zoo:NAME")
    add("--episodes", type=PositiveInt, help="for each target return; default: the run's config")
    add("--n_envs", type=PositiveInt, help="the most environments that are open at once; default: the run's config")
    add("--max_steps", type=PositiveInt, help="steps after which an episode is cut; default: the run's config")
    add("--targets", type=float, nargs="+", help="returns to ask for; default: the run's config")
    add("--memory", choices=["carried", "window"], help="default: the run's config")
    add("--env", help="environment id, or my_module:id of your own; default: the run's own")
    add("--env_kwargs", type=dict[str, Any], help="the environment's arguments, '{length: 70}'; default: the run's own")
    add("--stochastic", action="store_true", help="draw actions from the policy; default: the likeliest in every step")
    add("--seed", type=Seed, help="reset seed of the first episode; default: the run's config")
    add("--backbone", metavar="MODULE:CLASS", help="import the run's backbone, one of your own")
    add("--video", action="store_true", help="also write a GIF beside the JSON, where rendering works")
    add(
        "--output",
        help="JSON file; default: evaluation.json in the run folder, evaluation_NAME.json for an older checkpoint; "
        "before the .json come _other_task for another --env, --env_kwargs or --max_steps than the run's own, and "
        "_stochastic for --stochastic",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Play a run; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = make_parser()
    options = parser.parse_args(arguments)
    expand_home(options, "run", "output")
    output = options.output
    if output is not None and not (output.endswith(".json") and Path(output).parent.is_dir()):
        parser.error(f"--output {output}: must end in .json and be in a folder that exists")
    if options.targets is not None and not all(map(math.isfinite, options.targets)):
        parser.error(f"targets {options.targets}: one finite number or more is needed, or none for the default")

    with Reporting("unroll evaluate") as report:
        import_backbone(arguments, "--backbone", options.backbone)
        import_environment(arguments, "--env", options.env)
        evaluate(options)
    return report.code


def evaluate(options: Namespace) -> None:
    """Load the agent, play it, and print and write its scores."""
    from unroll.agents.common.checkpoint import latest_checkpoint
    from unroll.agents.evaluation import scoring
    from unroll.agents.evaluation.video import try_gif
    from unroll.commands.console import Output
    from unroll.pictures.evaluation import draw_evaluation

    # A checkpoint knows its agent; the run's config says how it is evaluated.
    console = Output()
    checkpoint = latest_checkpoint(find_run(options.run).absolute())
    run, config = config_of(checkpoint, "unroll evaluate")
    player = algorithm_of(checkpoint).player(checkpoint, config, play_options(options))
    player.n_envs = options.n_envs or player.n_envs
    player.other_task |= options.max_steps not in (None, player.max_steps)
    player.max_steps = options.max_steps or player.max_steps
    if options.stochastic:
        player.draw()
    if not (options.episodes or player.episodes):
        raise EnvError(f"{run} was trained with evaluation.episodes 0, without evaluations: --episodes says how many")

    result = scoring.evaluate(player, options.episodes, options.seed)
    output = results_folder(options.run, run) / default_name(checkpoint, run)
    if player.other_task:  # evaluation.json is what runs are compared by
        output = output.with_stem(f"{output.stem}_other_task")
    if options.stochastic:
        output = output.with_stem(f"{output.stem}_stochastic")
    if options.output:
        output = Path(options.output)
    console.print(scoring.score_table(result))  # first: it would be lost where nothing can be written
    if player.other_task:
        console.print("played in another task than the run's own")
    try:
        scoring.write_evaluation(result, output)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); --output FILE.json writes elsewhere"
        ) from error
    console.print(f"written to {output}")
    if options.video:
        gif = try_gif(player, result, console.print)
        if gif is not None:
            output.with_suffix(".gif").write_bytes(gif)
            console.print(f"video: {output.with_suffix('.gif')}")
    draw_evaluation(result, output.with_suffix(".png"))
    console.print(f"picture: {output.with_suffix('.png')}")


def play_options(options: Namespace) -> PlayOptions:
    return PlayOptions(
        device=options.device,
        env=options.env,
        env_kwargs=options.env_kwargs,
        targets=options.targets,
        memory=options.memory,
    )


def config_of(checkpoint: Path, command: str) -> tuple[Path, RunConfig | None]:
    """Return the run folder of a checkpoint and its config.

    A checkpoint by itself is its own folder, without a config. One that is damaged ends ``command``.
    """
    run = checkpoint.parent
    if run.name == "checkpoints":
        run = run.parent
    saved = run / "config.yaml"
    if not saved.is_file():
        return checkpoint, None
    return run, load_saved(saved, schemas(), f"{command}: {saved}")


def default_name(checkpoint: Path, run: Path) -> str:
    """Return the name of an evaluation's file: ``evaluation.json`` is that of a run's last checkpoint."""
    from unroll.agents.common.checkpoint import latest_checkpoint

    if checkpoint in (run, latest_checkpoint(run)):
        return "evaluation.json"
    return f"evaluation_{checkpoint.name}.json"
