"""Play a trained run and score it: python evaluate.py runs/… [--episodes N] [--targets 3600 1800] [--memory window]"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import NonNegativeInt, PositiveInt

from unroll.commands.process import names, run_command
from unroll.configs import EvaluationConfig, Parser, PPOConfig, TrainConfig, check_targets, load_saved

if TYPE_CHECKING:
    from unroll.agents.evaluation.player import Player
    from unroll.configs import Config


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="a run folder, or one of its checkpoints")
    parser.add_argument("--episodes", type=PositiveInt, help="for each target return; default: the run's config")
    parser.add_argument("--targets", type=float, nargs="+", help="returns to ask for; default: the run's config")
    parser.add_argument("--memory", choices=["carried", "window"], help="default: the run's config")
    parser.add_argument("--env", help="environment id; default: the run's own")
    parser.add_argument(
        "--seed", type=NonNegativeInt, help="reset seed of the first episode; default: the run's config"
    )
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="import the run's backbone, one of your own")
    parser.add_argument("--video", action="store_true", help="also write a GIF beside the JSON, where rendering works")
    parser.add_argument(
        "--output",
        help="JSON file; default: evaluation.json in the run folder, evaluation_NAME.json for an older checkpoint",
    )
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

    from unroll.agents.common.checkpoint import agent_of, latest_checkpoint
    from unroll.agents.evaluation import scoring
    from unroll.policies.backbones import import_own

    if may_import:
        import_own(options.backbone)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    checkpoint = latest_checkpoint(Path(options.run).absolute())
    run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    saved = run / "config.yaml"
    declared = load_saved(saved, f"evaluate.py: {saved}") if saved.is_file() else None
    if declared is None:  # a checkpoint by itself
        run = checkpoint
    get_player = ppo if agent_of(checkpoint) == "RecurrentPPO" else decision
    player, episodes, seed = get_player(options, checkpoint, declared)
    of = "" if checkpoint in (run, latest_checkpoint(run)) else f"_{checkpoint.name}"  # the run's own is its last's
    output = Path(options.output) if options.output else run / f"evaluation{of}.json"
    result = scoring.evaluate(player, options.episodes or episodes, seed if options.seed is None else options.seed)
    scoring.write_evaluation(result, output)
    console.print(scoring.score_table(result))
    console.print(f"written to {output}")
    if options.video:
        gif = scoring.try_gif(player, result, console.print)
        if gif is not None:
            output.with_suffix(".gif").write_bytes(gif)
            console.print(f"video: {output.with_suffix('.gif')}")
    return 0


def decision(options: Namespace, checkpoint: Path, declared: Config | None) -> tuple[Player, int, int]:
    """The decision agent as the run's config and the options have it, its number of episodes and their first seed."""
    from unroll.agents import DecisionAgent
    from unroll.agents.evaluation.player import decision_player
    from unroll.errors import EnvError

    agent = DecisionAgent.load(checkpoint, device=options.device)
    own = declared.evaluation if isinstance(declared, TrainConfig) else EvaluationConfig(memory=agent.policy.memory)
    env_id = options.env or own.env or agent.task.get("env")
    if env_id is None:
        raise EnvError(f"{options.run}: its dataset names no environment; give one with --env")
    player = decision_player(agent, env_id, options.targets or own.targets, options.memory or own.memory)
    return player, own.episodes, own.seed


def ppo(options: Namespace, checkpoint: Path, declared: Config | None) -> tuple[Player, int, int]:
    """The same for PPO."""
    from unroll.agents.ppo.algorithm import load_ppo, player_of, refuse_decision_options

    refuse_decision_options(options.run, options.targets, options.memory)
    agent, config = load_ppo(checkpoint, options.device)
    own = (declared if isinstance(declared, PPOConfig) else config).evaluation
    return player_of(agent, config, own.ablation, options.env), own.episodes, own.seed
