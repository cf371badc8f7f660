"""Train one agent from a config: python train.py [--config configs/….yaml] [--key value …]"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import TrainConfig, load_config, save_config
from configs.commands import run_command


def main(arguments: list[str]) -> int:
    return run_command("train.py", train, load_config(arguments))


def train(config: TrainConfig) -> int:
    """The exit code: 0, or 128 + n when signal n stopped the run, which can be resumed then."""
    import torch
    from rich.console import Console

    from agents import DecisionAgent, scoring
    from agents.callbacks import Every, SaveCheckpoints, ShowProgress, StopOnSignal
    from agents.logs import RunLogger
    from envs import load_episodes

    console = Console()
    if config.threads:
        torch.set_num_threads(config.threads)
    episodes = load_episodes(config.dataset, download=config.download)
    env_id = evaluation_env(config, episodes.env_id, console.print)
    run = run_folder(config, episodes.name)
    agent = DecisionAgent.load(run, episodes, device=config.device) if config.resume else new_agent(config, episodes)
    if env_id is not None:
        scoring.check_fit(agent, env_id)
    logger = RunLogger(run, agent.num_timesteps)
    save_config(config, run / "config.yaml")
    agent.set_logger(logger)
    if not config.resume:
        tags = [
            "eval/normalized_score",
            "eval/return_mean",
            "perf/train_tokens_per_s",
            "perf/step_latency_us",
            "train/loss",
        ]
        logger.hyperparameters(_flat(dataclasses.asdict(config)), tags)
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in _flat(dataclasses.asdict(config)).items())
        logger.text("config", f"| key | value |\n|---|---|\n{rows}", 0)

    def evaluate() -> dict[str, Any]:
        assert env_id is not None
        options = config.evaluation
        result = scoring.evaluate(agent, env_id, options.targets, options.episodes, options.seed, options.memory)
        for tag, value in scoring.headline(result).items():
            logger.record(tag, value)
        logger.dump(agent.num_timesteps)
        return result

    console.print(
        f"{config.backbone.name}, {sum(p.numel() for p in agent.policy.parameters()):,} parameters, on {agent.device}; "
        f"{len(episodes):,} episodes, {episodes.n_steps:,} steps of {episodes.name}"
    )
    stop = StopOnSignal()
    callbacks = [ShowProgress(config.steps, console), stop, SaveCheckpoints(run, config.checkpoint_every, config.keep)]
    if env_id is not None and config.evaluation.every:
        callbacks.insert(0, Every(config.evaluation.every, config.steps, evaluate))
    agent.learn(config.steps - agent.num_timesteps, callbacks, log_interval=config.log_every, reset_num_timesteps=False)
    if stop.received is not None:
        console.print(
            f"stopped at update {agent.num_timesteps}; to go on: python train.py --resume true --run_dir {run}"
        )
        return 128 + stop.received

    if env_id is not None:
        result = evaluate()
        scoring.write_evaluation(result, run / "evaluation.json")
        console.print(scoring.score_table(result))
        if config.evaluation.video:
            gif = scoring.try_gif(agent, result, console.print)
            if gif is not None:
                (run / "evaluation.gif").write_bytes(gif)
                logger.gif("eval/episode", gif, agent.num_timesteps)
    logger.close()
    root = "runs" if config.run_dir is None else run
    console.print(f"run folder    {run}\nwatch         tensorboard --logdir {root}", highlight=False)
    if env_id is not None:
        console.print(f"score again   python evaluate.py {run}", highlight=False)
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


def new_agent(config: TrainConfig, episodes: Any) -> Any:
    """The untrained agent of a config."""
    from agents import DecisionAgent

    return DecisionAgent(
        episodes,
        context=config.context,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        top_fraction=config.top_fraction,
        timestep_embedding=config.timestep_embedding,
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


def run_folder(config: TrainConfig, dataset_name: str) -> Path:
    """The folder to write to. A run that is there is never overwritten: a name of ours gets a number, one that
    was given is an error.

    Raises:
        CheckpointError: the given folder holds a run already, or there is none to resume.
    """
    from agents.checkpoint import CheckpointError, latest_checkpoint

    folder = Path("runs", config.experiment or dataset_name, config.backbone.name, f"seed{config.seed}")
    if config.run_dir is not None:
        folder = Path(config.run_dir)
    if config.resume:
        latest_checkpoint(folder)
        return folder
    if (folder / "config.yaml").exists():
        if config.run_dir is not None:
            raise CheckpointError(
                f"{folder}: holds a run already; --resume true goes on with it, another --run_dir starts a new one"
            )
        number = 2
        while folder.with_name(f"{folder.name}-{number}").exists():
            number += 1
        folder = folder.with_name(f"{folder.name}-{number}")
    return folder


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
