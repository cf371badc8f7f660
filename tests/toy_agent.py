"""A third algorithm in one file: it learns to repeat one action, and has all that the commands ask of an agent.

As a script it is ``unroll train`` with this algorithm registered."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from torch import nn

import toy  # noqa: F401 - it registers the environments
from unroll.agents import AGENTS
from unroll.agents.algorithm import Algorithm, PlayOptions, Words
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint, optimizer_tensors, write_checkpoint
from unroll.agents.common.restoring import of_checkpoint, read_agent, restore
from unroll.agents.common.step import Port, Step, for_acting
from unroll.agents.evaluation.player import Player
from unroll.configs.fields import BackboneConfig, RunConfig
from unroll.configs.loading import plain_config, read_config
from unroll.envs.make import make_env
from unroll.policies.backbones import make_backbone


@dataclasses.dataclass
class RepeatEvaluation:
    """Playing episodes."""

    episodes: PositiveInt = 2
    """episodes to play"""
    every: int = 0
    """updates between evaluations"""
    seed: int = 0
    """reset seed of the first episode"""
    video: bool = False
    """also record a GIF"""


@dataclasses.dataclass
class RepeatConfig(RunConfig):
    """Train an agent that repeats one action."""

    agent: Literal["repeat"] = "repeat"
    """how to learn"""
    env: str = "ToyDiscrete-v0"
    """id of a registered environment"""
    action: int = 2
    """the action to repeat"""
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    """the sequence model"""
    evaluation: RepeatEvaluation = dataclasses.field(default_factory=RepeatEvaluation)
    """playing episodes"""
    steps: PositiveInt = 20
    """gradient updates"""
    log_every: PositiveInt = 5
    """updates between two points in the log"""
    checkpoint_every: PositiveInt = 10
    """updates between two checkpoints"""


class RepeatPolicy(nn.Module):
    def __init__(self, backbone: BackboneConfig):
        super().__init__()
        self.embed = nn.Linear(2, backbone.d_model)
        self.backbone = make_backbone(backbone.name, backbone.d_model, backbone.n_layers, **backbone.options)
        self.head = nn.Linear(backbone.d_model, 3)


class RepeatAgent:
    def __init__(self, config: RepeatConfig):
        torch.manual_seed(config.seed)
        self.config = config
        self.policy = RepeatPolicy(config.backbone)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-2)
        self.device = torch.device("cpu")
        self.num_timesteps = 0
        self.logger = Logger(folder=None, output_formats=[])

    def set_logger(self, logger: Logger) -> None:
        self.logger = logger

    def learn(self, steps: int, callback: list[Any], log_interval: int = 1, reset_num_timesteps: bool = True) -> None:
        listener = CallbackList(callback)
        listener.init_callback(self)  # type: ignore[arg-type]
        listener.on_training_start({}, {})
        for _ in range(steps):
            listener.on_rollout_start()
            x = torch.randn(8, 6, 2, generator=torch.Generator().manual_seed(self.num_timesteps))
            features, _ = self.policy.backbone(self.policy.embed(x))
            wanted = torch.full((48,), self.config.action)
            loss = nn.functional.cross_entropy(self.policy.head(features).flatten(0, 1), wanted)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.num_timesteps += 1
            if self.num_timesteps % log_interval == 0:
                self.logger.record("train/loss", float(loss.detach()))
                self.logger.record("perf/train_tokens_per_s", 1.0)
                self.logger.dump(self.num_timesteps)
            if not listener.on_step():
                break
        listener.on_training_end()

    @torch.inference_mode()
    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        state = self.policy.backbone.initial_state(len(observation)) if state is None else state
        reset = torch.as_tensor(np.asarray(episode_start, bool))
        features, state = self.policy.backbone.step(self.policy.embed(torch.as_tensor(observation)), state, reset)
        return self.policy.head(features).argmax(-1).numpy(), state

    def save(self, path: Path) -> None:
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        state = {"format": 1, "agent": "RepeatAgent", "num_timesteps": self.num_timesteps}
        config = plain_config(self.config)
        write_checkpoint(path, tensors | optimizer_tensors(self.optimizer), state | {"config": config})


class RepeatTraining:
    def __init__(self, config: RepeatConfig):
        self.config = config
        self.name = config.env
        self.callbacks: list[Any] = []
        self.agent = RepeatAgent(config)
        if config.resume and checkpoints(config.run_dir or ""):
            fill(self.agent, latest_checkpoint(config.run_dir or ""))

    def describe(self) -> str:
        return "repeats one action"

    def progress(self) -> str:
        return ""

    def player(self) -> Player:
        return player_of(self.agent)

    def save(self, path: Path) -> None:
        self.agent.save(path)

    def go_back(self) -> None:
        pass


class RepeatStep(Step):
    def __init__(self, policy: RepeatPolicy):
        super().__init__([Port("observation", torch.float32, (2,))], policy.backbone)
        self.action = Port("action", torch.int64)
        self.embed = policy.embed
        self.backbone = for_acting(policy.backbone)
        self.head = policy.head
        self.eval()

    def act(self, shown: dict[str, torch.Tensor], state: Any) -> tuple[torch.Tensor, Any]:
        features, state = self.backbone.step(self.embed(shown["observation"]), state, shown["reset"])
        return self.head(features).argmax(-1), state


class Repeat(Algorithm):
    name = "repeat"
    agent = "RepeatAgent"
    config = RepeatConfig
    unit = "update"
    long_unit = "updates"
    source = "env"
    headlines = ("eval/return_mean", "train/loss")

    def training(self, config: RepeatConfig, tell: Any) -> RepeatTraining:
        return RepeatTraining(config)

    def load(self, checkpoint: Path, device: str = "auto") -> RepeatAgent:
        _, state = read_agent(checkpoint, self.agent, 1)
        config = read_config(state["config"], {self.name: RepeatConfig}, str(checkpoint))
        agent = RepeatAgent(config)
        fill(agent, checkpoint)
        return agent

    def player(self, checkpoint: Path, config: Any, options: PlayOptions) -> Player:
        return player_of(self.load(checkpoint))

    def step(self, checkpoint: Path, memory: str | None) -> tuple[Step, dict[str, Any]]:
        agent = self.load(checkpoint)
        facts = {"agent": self.agent, "backbone": agent.config.backbone.name, "env": agent.config.env, "wrappers": []}
        facts |= {"first_action": None, "keeps_memory": False, "updates": agent.num_timesteps}
        return RepeatStep(agent.policy), facts

    def words(self, config: Any) -> Words:
        return Words("repeating agent", "repeat", "unpublished")

    def learned_from(self, config: Any, describe_dataset: Any) -> str:
        return "It learned from nothing."

    def env(self, config: Any) -> str:
        return config.env


def fill(agent: RepeatAgent, checkpoint: Path) -> None:
    tensors, state = read_agent(checkpoint, "RepeatAgent", 1)
    with of_checkpoint(checkpoint):
        restore(agent.policy, agent.optimizer, agent.policy.state_dict(), tensors)
        agent.num_timesteps = state["num_timesteps"]


def player_of(agent: RepeatAgent) -> Player:
    env_id = agent.config.env
    facts = {"agent": "RepeatAgent", "updates": agent.num_timesteps, "memory": "carried"}
    return Player(agent, env_id, lambda **kwargs: make_env(env_id, **kwargs), lambda env: env, facts)


AGENTS["repeat"] = Repeat()

if __name__ == "__main__":
    from unroll.commands.train import main

    sys.exit(main(sys.argv[1:]))
