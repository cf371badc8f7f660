"""Train one agent from a config: python train.py [--config configs/….yaml] [--key value …]"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import RESUMABLE, BackboneConfig, TrainConfig, load_config, save_config
from configs.commands import names, run_command

if TYPE_CHECKING:  # torch and the rest are imported once the arguments are known to be right
    from rich.console import Console

    from agents import DecisionAgent
    from agents.logs import RunLogger
    from envs import Episodes

HEADLINES = [
    "eval/normalized_score",
    "eval/return_mean",
    "perf/train_tokens_per_s",
    "perf/step_latency_us",
    "train/loss",
]


def main(arguments: list[str]) -> int:
    config = load_config(arguments)
    return run_command("train.py", train, config, names(arguments, "--backbone.name", config.backbone.name))


def train(config: TrainConfig, may_import: bool = False) -> int:
    """The exit code: 0, or 128 + n when signal n stopped the run, which can be resumed then.

    ``may_import``: whether the command line itself names the backbone, which may be a class of the user's own then.
    """
    import torch
    from rich.console import Console

    from agents import scoring
    from envs import load_episodes

    console = Console(markup=False, highlight=False, soft_wrap=True)
    config = dataclasses.replace(config, backbone=settle(config.backbone, may_import))
    if config.threads:
        torch.set_num_threads(config.threads)
    episodes = load_episodes(config.dataset, download=config.download)
    env_id = evaluation_env(config, episodes.env_id, console.print)
    agent = resumed_agent(config, episodes) if config.resume else new_agent(config, episodes)
    if env_id is not None:
        scoring.check_fit(agent, env_id)
    run = Path(config.run_dir or "") if config.resume else claim_folder(config, episodes.name)
    parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    sizes = {"d_model": config.backbone.d_model, "n_layers": config.backbone.n_layers} | config.backbone.options
    console.print(f"{config.backbone.name} ({', '.join(f'{key} {value}' for key, value in sizes.items())}), ", end="")
    console.print(f"{parameters:,} parameters, on {agent.device}; ", end="")
    console.print(f"{len(episodes):,} episodes, {episodes.n_steps:,} steps of {episodes.name}")
    with contextlib.closing(start_logs(config, agent, run)) as logger:
        return learn_and_score(config, agent, run, env_id, logger, console)


def settle(backbone: BackboneConfig, may_import: bool) -> BackboneConfig:
    """The backbone with the width and options that it is built with.

    Raises:
        BackboneError: it does not exist, or has no such option or size.
    """
    from policies.backbones import find_backbone, import_own, match_parameters
    from policies.backbones.options import check_options

    if may_import and ":" in backbone.name:
        import_own(backbone.name)
    check_options(backbone.name, find_backbone(backbone.name), backbone.options)
    if not backbone.match_parameters:
        return backbone
    d_model, options = match_parameters(backbone.name, backbone.match_parameters, backbone.n_layers, **backbone.options)
    return dataclasses.replace(backbone, d_model=d_model, options=options, match_parameters=0)


def learn_and_score(
    config: TrainConfig, agent: DecisionAgent, run: Path, env_id: str | None, logger: RunLogger, console: Console
) -> int:
    """Learn to the last update or the first signal, then play, and say what came of it and what to type next."""
    from agents import scoring
    from agents.callbacks import Every, SaveCheckpoints, ShowProgress, StopOnSignal

    options = config.evaluation

    def own(flag: str) -> str:  # a class of the user's own is named on every command line
        return f"{flag} {config.backbone.name}" if ":" in config.backbone.name else ""

    def evaluate() -> dict[str, Any]:
        result = scoring.evaluate(agent, env_id or "", options.targets, options.episodes, options.seed, options.memory)
        for tag, value in scoring.headline(result).items():
            logger.record(tag, value)
        logger.dump(agent.num_timesteps)
        return result

    with ShowProgress(config.steps, console) as progress, StopOnSignal() as stop:
        callbacks = [progress, stop, SaveCheckpoints(run, config.checkpoint_every, config.keep)]
        if env_id is not None and options.every:
            callbacks.insert(0, Every(options.every, config.steps, evaluate))
        steps = config.steps - agent.num_timesteps
        agent.learn(steps, callbacks, log_interval=config.log_every, reset_num_timesteps=False)
    if stop.received is not None:
        hint = f"python train.py --resume true --run_dir {shlex.quote(str(run))}{own(' --backbone.name')}"
        console.print(f"stopped at update {agent.num_timesteps}; to go on: {hint}")
        return 128 + stop.received

    result = None
    if env_id is not None:
        if steps > 0 or not (run / "evaluation.json").is_file():
            result = evaluate()
            scoring.write_evaluation(result, run / "evaluation.json")
        else:  # a finished run that is "resumed" has nothing left to do
            result = json.loads((run / "evaluation.json").read_text())
        console.print(scoring.score_table(result))
        gif = scoring.try_gif(agent, result, console.print) if options.video else None
        if gif is not None:
            (run / "evaluation.gif").write_bytes(gif)
            logger.gif("eval/episode", gif, agent.num_timesteps)
    quoted = shlex.quote(str(run))
    console.print(
        f"run folder    {run}\nwatch         tensorboard --logdir {'runs' if config.run_dir is None else quoted}"
    )
    if result is not None:
        console.print(f"score again   python evaluate.py {quoted}{own(' --backbone')}")
    return 0


def evaluation_env(config: TrainConfig, dataset_env: str | None, tell: Callable[[str], Any]) -> str | None:
    """The environment to evaluate in. A dataset may name one that is not installed, and be trained on all the same."""
    from envs.make import EnvironmentError, find_env

    env_id = config.evaluation.env or dataset_env
    if env_id is None:
        tell("no evaluation: the dataset names no environment; --evaluation.env gives one")
        return None
    try:
        find_env(env_id)
    except EnvironmentError as error:
        if config.evaluation.env:
            raise
        tell(f"no evaluation: {error}")
        return None
    return env_id


def new_agent(config: TrainConfig, episodes: Episodes) -> DecisionAgent:
    """The untrained agent of a config."""
    from agents import DecisionAgent

    return DecisionAgent(
        episodes,
        context=config.context,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        top_fraction=config.top_fraction,
        timestep_embedding=config.timestep_embedding,
        precision=config.precision,
        compile=config.compile,
        seed=config.seed,
        device=config.device,
        policy_kwargs=dict(
            backbone=config.backbone.name,
            d_model=config.backbone.d_model,
            n_layers=config.backbone.n_layers,
            backbone_options=config.backbone.options,
            tokens=config.tokens,
            condition=config.condition,
            previous_action=config.previous_action,
            dropout=config.dropout,
            memory=config.evaluation.memory,
        ),
    )


def resumed_agent(config: TrainConfig, episodes: Episodes) -> DecisionAgent:
    """The agent of the run's last checkpoint; the untrained one where a crash came before the first."""
    from agents import DecisionAgent
    from agents.checkpoint import checkpoints

    assert config.run_dir is not None
    if not checkpoints(config.run_dir):
        return new_agent(config, episodes)
    return DecisionAgent.load(config.run_dir, device=config.device, episodes=episodes)


def claim_folder(config: TrainConfig, dataset_name: str) -> Path:
    """The new folder of the run, made by this call. What is there is never overwritten: a name of ours gets a number, a
    folder that was given and holds anything is an error.

    Raises:
        CheckpointError: the given folder is not empty.
    """
    from agents.checkpoint import CheckpointError

    if config.run_dir is not None:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            hint = "--resume true goes on with a run, another --run_dir starts a new one"
            raise CheckpointError(f"{folder}: is not empty; {hint}")
        return folder
    backbone = config.backbone.name.replace(":", ".")
    first = Path("runs", config.experiment or dataset_name, backbone, f"seed{config.seed}")
    first.parent.mkdir(parents=True, exist_ok=True)
    folder, number = first, 1
    while True:
        try:
            folder.mkdir()  # fails where another process was faster
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


def start_logs(config: TrainConfig, agent: DecisionAgent, run: Path) -> RunLogger:
    """Events, metrics.jsonl and the saved config, with the hyperparameters of a new run."""
    from agents.logs import RunLogger

    logger = RunLogger(run, agent.num_timesteps)
    save_config(config, run / "config.yaml")
    agent.set_logger(logger)
    if not config.resume:
        flat = _flat(dataclasses.asdict(config))
        hidden = set(RESUMABLE) - {"dataset", "steps"}  # what does not bear on the result
        logger.hyperparameters({k: v for k, v in flat.items() if k.split(".")[0] not in hidden}, HEADLINES)
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in flat.items())
        logger.text("config", f"| key | value |\n|---|---|\n{rows}", 0)
    return logger


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
