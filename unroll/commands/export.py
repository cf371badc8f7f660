"""Write one step of a trained policy for ONNX Runtime or torch.export: python export.py runs/… [--format onnx|pt2]"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.commands.process import names, run_command
from unroll.configs import Parser

if TYPE_CHECKING:
    from unroll.export import Step


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="export.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="a run folder, or one of its checkpoints")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="pt2: torch.export's")
    parser.add_argument("--output", help="folder; default: onnx or pt2 in the run folder")
    parser.add_argument(
        "--memory", choices=["carried"], help="export a carried memory, also of an agent that acts with a window"
    )
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="import the run's backbone, one of your own")
    options = parser.parse_args(arguments)
    return run_command("export.py", export, options, names(arguments, "--backbone", options.backbone))


def export(options: Namespace, may_import: bool) -> int:
    from unroll.agents.common.checkpoint import agent_of, latest_checkpoint
    from unroll.export import write_export
    from unroll.export.folder import check_free
    from unroll.export.formats import require_packages
    from unroll.policies.backbones import import_own

    require_packages(options.format)
    if may_import:
        import_own(options.backbone)
    checkpoint = latest_checkpoint(Path(options.run).absolute())
    run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint
    folder = Path(options.output).absolute() if options.output else run / options.format
    check_free(folder)  # before seconds of work
    get_step = ppo if agent_of(checkpoint) == "RecurrentPPO" else decision
    step, facts = get_step(options, checkpoint)
    differs = write_export(step, facts, checkpoint, options.format, folder)
    files = f"policy.{options.format}, policy.json, README.md, run.py, play.py"
    print(f"{folder}: {files}; differs from PyTorch by {differs:.1g}")
    print(f"try it: python {folder / 'play.py'}")
    return 0


def decision(options: Namespace, checkpoint: Path) -> tuple[Step, dict[str, Any]]:
    """The step of a decision agent, and what is to be said of it."""
    from unroll.agents import DecisionAgent
    from unroll.errors import ExportError
    from unroll.export import DecisionStep

    agent = DecisionAgent.load(checkpoint, device="cpu")
    if (options.memory or agent.policy.memory) != "carried":
        raise ExportError(
            f"{options.run} acts with a window of {agent.policy.config['context']} steps, which is not exported; "
            "--memory carried exports the same weights with a state that is carried from step to step"
        )
    config, task = agent.policy.config, agent.task
    actions = config["action_space"]
    return DecisionStep(agent.policy), {
        "agent": "DecisionAgent",
        "backbone": config["backbone"],
        "env": task.get("env"),
        "wrappers": [],
        "action_space": actions,
        "first_action": actions["n"] if actions["type"] == "Discrete" else [0.0] * len(actions["low"]),
        "keeps_memory": False,
        "dataset": task.get("dataset"),
        "dataset_returns": task.get("return_quantiles"),
        "updates": agent.num_timesteps,
    }


def ppo(options: Namespace, checkpoint: Path) -> tuple[Step, dict[str, Any]]:
    """The same for PPO."""
    from unroll.agents.ppo.algorithm import load_ppo, refuse_decision_options, wrappers
    from unroll.envs.spaces import in_words
    from unroll.export import ActorStep

    refuse_decision_options(options.run, None, options.memory)
    agent, config = load_ppo(checkpoint, "cpu")
    assert agent.env is not None
    space, normalizer = agent.env.unwrapped.observation_space, agent.get_vec_normalize_env()
    step = ActorStep(agent.policy, space, normalizer, agent.env.has_attr("action_masks"))
    return step, {
        "agent": "RecurrentPPO",
        "backbone": config.backbone.name,
        "env": config.env,
        "wrappers": [name for name in ("previous_action", "previous_reward") if wrappers(config)[name]],
        "action_space": in_words(agent.action_space),
        "first_action": None,
        "keeps_memory": not config.reset_on_done,
        "steps": agent.num_timesteps,
    }
