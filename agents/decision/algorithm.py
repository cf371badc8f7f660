"""What the decision agent brings to the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.agents.algorithm import Algorithm, PlayOptions, Tell, Training, Words
from unroll.agents.decision.config import DecisionConfig
from unroll.errors import EnvError, ExportError, HyperparameterError

if TYPE_CHECKING:
    from unroll.agents.common.step import Step
    from unroll.agents.decision.agent import DecisionAgent
    from unroll.agents.evaluation.player import Player


class Decision(Algorithm):
    """Imitation and return-conditioned learning from recorded episodes."""

    name = "decision"
    agent = "DecisionAgent"
    config = DecisionConfig
    unit = "update"
    long_unit = "updates"
    source = "dataset"
    headlines = (
        "eval/normalized_score",
        "eval/return_mean",
        "perf/train_tokens_per_s",
        "perf/step_latency_us",
        "perf/parameters",
        "perf/peak_memory_mb",
        "train/loss",
    )

    def training(self, config: DecisionConfig, tell: Tell) -> Training:
        from unroll.agents.decision.training import DecisionTraining

        return DecisionTraining(config, tell)

    def load(self, checkpoint: Path, device: str = "auto") -> DecisionAgent:
        from unroll.agents.decision.agent import DecisionAgent

        return DecisionAgent.load(checkpoint, device=device)

    def player(self, checkpoint: Path, config: DecisionConfig | None, options: PlayOptions) -> Player:
        from unroll.agents.decision.player import decision_player, own_task

        agent = self.load(checkpoint, options.device)
        if options.targets and agent.policy.config["condition"] == "none":
            raise HyperparameterError(
                f"{checkpoint} follows no return (condition none): there is no target to ask it for"
            )
        own = (config or DecisionConfig()).evaluation
        env_id = options.env or own.env or agent.task.get("env")
        if env_id is None:
            raise EnvError(f"{checkpoint}: its dataset names no environment; give one with --env")
        memory = options.memory or (own.memory if config else agent.policy.memory)
        env_kwargs = own.env_kwargs if options.env_kwargs is None else options.env_kwargs
        player = decision_player(agent, env_id, options.targets or own.targets, memory, env_kwargs)
        task = own_task(own.env, own.env_kwargs, agent.task)
        player.other_task = task not in (None, (player.env_id, player.env_kwargs))
        return player.as_told(own)

    def step(self, checkpoint: Path, memory: str | None) -> tuple[Step, dict[str, Any]]:
        from unroll.agents.decision.player import largest_target
        from unroll.agents.decision.step import DecisionStep
        from unroll.agents.decision.task import whole_actions

        agent = self.load(checkpoint, "cpu")
        if (memory or agent.policy.memory) != "carried":
            raise ExportError(
                f"{checkpoint} acts with a window of {agent.policy.config['context']} steps, which is not exported; "
                "--memory carried exports the same weights with a state that is carried from step to step"
            )
        actions = agent.policy.config["action_space"]
        discrete = actions["type"] == "Discrete"
        whole = None if discrete else whole_actions(agent.task, actions)
        return DecisionStep(agent.policy, whole), {
            "agent": self.agent,
            "backbone": agent.policy.config["backbone"],
            "env": agent.task.get("env"),
            "env_kwargs": agent.task.get("env_kwargs", {}),
            "wrappers": [],
            "action_space": whole or actions,
            # Shown as the action before the first one; a discrete action is shown as its place among the choices.
            "first_action": actions["n"] if discrete else [0.0] * len(actions["low"]),
            "start": actions.get("start", 0),
            "keeps_memory": False,
            "default_target": largest_target(agent),
            "dataset": agent.task.get("dataset"),
            "dataset_returns": agent.task.get("return_quantiles"),
            "updates": agent.num_timesteps,
        }

    def words(self, config: DecisionConfig) -> Words:
        if config.condition == "none":
            return Words("behaviour cloning agent", "behavior-cloning", "a decision agent without returns")
        paper = "after [2106.01345](https://arxiv.org/abs/2106.01345)"
        if config.condition == "best":
            paper += " and [2405.08740](https://arxiv.org/abs/2405.08740)"
        return Words("decision agent", "decision-transformer", paper)

    def learned_from(self, config: DecisionConfig, describe_dataset: Callable[[str], str]) -> str:
        sources = [config.dataset] if isinstance(config.dataset, str) else config.dataset
        return f"It learned from {' and '.join(map(describe_dataset, sources))}."

    def env(self, config: DecisionConfig) -> str | None:
        return config.evaluation.env

    def imports(self, config: DecisionConfig) -> dict[str, str]:
        env = config.evaluation.env or ""
        return {"--evaluation.env": env} if ":" in env else {}
