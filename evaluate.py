"""Play a trained run and score it: python evaluate.py runs/… [--episodes N] [--targets 3600 1800] [--memory window]"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from configs import EvaluationConfig, Parser, check_targets, load_config
from configs.commands import names, run_command


def main(arguments: list[str]) -> int:
    parser = Parser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="a run folder, or one of its checkpoints")
    parser.add_argument("--episodes", type=PositiveInt, help="for each target return; default: the run's config")
    parser.add_argument("--targets", type=float, nargs="+", help="returns to ask for; default: the run's config")
    parser.add_argument("--memory", choices=["carried", "window"], help="default: the run's config")
    parser.add_argument("--env", help="environment id; default: the dataset's own")
    parser.add_argument(
        "--seed", type=NonNegativeInt, help="reset seed of the first episode; default: the run's config"
    )
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="import the run's backbone, one of your own")
    parser.add_argument("--video", action="store_true", help="also write a GIF beside the JSON, where rendering works")
    parser.add_argument("--output", help="JSON file; default: evaluation.json in the run folder")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args(arguments)
    if options.output is not None and (
        not options.output.endswith(".json") or not Path(options.output).parent.is_dir()
    ):
        parser.error(f"--output {options.output}: must end in .json and be in a folder that exists")
    check_targets(parser, options.targets)
    return run_command("evaluate.py", evaluate, options, names(arguments, "--backbone", options.backbone))


def evaluate(options: Namespace, may_import: bool) -> int:
    from rich.console import Console

    from agents import DecisionAgent, scoring
    from agents.checkpoint import latest_checkpoint
    from envs.make import EnvironmentError
    from policies.backbones import import_own

    if may_import:
        import_own(options.backbone)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    checkpoint = latest_checkpoint(Path(options.run).absolute())
    run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    agent = DecisionAgent.load(checkpoint, device=options.device)
    saved = run / "config.yaml"
    if saved.is_file():
        declared = load_config(["--config", str(saved)], prog=f"evaluate.py: {saved}").evaluation
    else:  # a checkpoint by itself
        run, declared = checkpoint, EvaluationConfig(memory=agent.policy.memory)
    env_id = options.env or declared.env or agent.task.get("env")
    if env_id is None:
        raise EnvironmentError(f"{options.run}: its dataset names no environment; give one with --env")
    output = Path(options.output) if options.output else run / "evaluation.json"
    result = scoring.evaluate(
        agent,
        env_id,
        options.targets or declared.targets,
        options.episodes or declared.episodes,
        declared.seed if options.seed is None else options.seed,
        options.memory or declared.memory,
    )
    scoring.write_evaluation(result, output)
    console.print(scoring.score_table(result))
    console.print(f"written to {output}")
    if options.video:
        gif = scoring.try_gif(agent, result, console.print)
        if gif is not None:
            output.with_suffix(".gif").write_bytes(gif)
            console.print(f"video: {output.with_suffix('.gif')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
