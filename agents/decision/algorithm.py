"""From a TrainConfig to a decision agent with its data and the environment that it is evaluated in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from unroll.agents import DecisionAgent
from unroll.agents.common.callbacks import describe_updates
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint, read_state
from unroll.agents.common.machine import not_as_made
from unroll.agents.decision.config import TrainConfig
from unroll.agents.evaluation.player import Player, decision_player
from unroll.envs import Episodes, load_episodes
from unroll.envs.make import find_env
from unroll.errors import EnvError


class DecisionJob:
    """See ``unroll.agents.algorithm.Job``. A run that crashed before its first checkpoint begins again."""

    unit = "update"
    headlines = [  # noqa: RUF012
        "eval/normalized_score",
        "eval/return_mean",
        "perf/train_tokens_per_s",
        "perf/step_latency_us",
        "perf/parameters",
        "perf/peak_memory_mb",
        "train/loss",
    ]

    def __init__(self, config: TrainConfig, tell: Callable[[str], Any]):
        self.config = config
        self.episodes = load_episodes(config.dataset, download=config.download)
        self.name = self.episodes.name
        self.env_id = evaluation_env(config, self.episodes.env_id, tell)
        self.callbacks: list[BaseCallback] = []
        if config.resume and checkpoints(config.run_dir or ""):
            self.agent = DecisionAgent.load(config.run_dir or "", device=config.device, episodes=self.episodes)
            tell(f"goes on at update {self.agent.num_timesteps}")
            note = not_as_made(read_state(latest_checkpoint(config.run_dir or "")))
            if note:
                tell(note)
        else:
            self.agent = new_agent(config, self.episodes)
        self.player()  # says now what would not fit

    def describe(self) -> str:
        return f"{len(self.episodes):,} episodes, {self.episodes.n_steps:,} steps of {self.episodes.name}"

    def progress(self) -> str:
        return describe_updates(self.agent)

    def player(self) -> Player | None:
        if self.env_id is None:
            return None
        options = self.config.evaluation
        return decision_player(self.agent, self.env_id, options.targets, options.memory)

    def save(self, path: Path) -> None:
        self.agent.save(path)


def evaluation_env(config: TrainConfig, dataset_env: str | None, tell: Callable[[str], Any]) -> str | None:
    """The environment to evaluate in. A dataset may name one that is not installed, and be trained on all the same."""
    env_id = config.evaluation.env or dataset_env
    if env_id is None:
        tell("no evaluation: the dataset names no environment; --evaluation.env gives one")
        return None
    try:
        find_env(env_id)
    except EnvError as error:
        if config.evaluation.env:
            raise
        tell(f"no evaluation: {error}")
        return None
    return env_id


def new_agent(config: TrainConfig, episodes: Episodes) -> DecisionAgent:
    """The untrained agent of a config."""
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
