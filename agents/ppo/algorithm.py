"""What recurrent PPO brings to the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.agents.algorithm import Algorithm, PlayOptions, Tell, Training, Words
from unroll.agents.ppo.config import PPOConfig
from unroll.errors import CheckpointError

if TYPE_CHECKING:
    from unroll.agents.common.step import Step
    from unroll.agents.evaluation.player import Player
    from unroll.agents.ppo.agent import RecurrentPPO


class PPO(Algorithm):
    """Proximal policy optimisation with a policy that remembers."""

    name = "ppo"
    agent = "RecurrentPPO"
    config = PPOConfig
    unit = "step"
    long_unit = "environment steps"
    source = "env"
    headlines = (
        "eval/normalized_score",
        "eval/return_mean",
        "eval/return_mean_without_memory",
        "rollout/ep_rew_mean",
        "perf/train_tokens_per_s",
        "perf/step_latency_us",
        "perf/parameters",
        "perf/peak_memory_mb",
    )

    def training(self, config: PPOConfig, tell: Tell) -> Training:
        from unroll.agents.ppo.training import PPOTraining

        return PPOTraining(config, tell)

    def load(self, checkpoint: Path, device: str = "auto") -> RecurrentPPO:
        from unroll.agents.ppo.training import load_ppo

        agent = load_ppo(checkpoint, device)[0]
        agent.act_unnormalized()
        return agent

    def player(self, checkpoint: Path, config: PPOConfig | None, options: PlayOptions) -> Player:
        from unroll.agents.ppo.player import ppo_player
        from unroll.agents.ppo.training import load_ppo

        _refuse(checkpoint, "--targets", options.targets)
        _refuse(checkpoint, "--memory", options.memory)
        agent, saved = load_ppo(checkpoint, options.device)
        own = (config or saved).evaluation
        assert agent.env is not None
        agent.env.close()  # it has told its spaces; where few can be open, those that are played in are opened next
        player = ppo_player(agent, saved, own.ablation, options.env, options.env_kwargs).as_told(own)
        player.other_task = (player.env_id, player.env_kwargs) != (saved.env.rpartition(":")[2], saved.env_kwargs)
        if own.reuse_envs:  # more than were learned in cannot be open
            player.n_envs = (config or saved).n_envs
        return player

    def step(self, checkpoint: Path, memory: str | None) -> tuple[Step, dict[str, Any]]:
        from unroll.agents.ppo.player import wrappers
        from unroll.agents.ppo.step import ActorStep
        from unroll.agents.ppo.training import load_ppo
        from unroll.envs.spaces import in_words

        _refuse(checkpoint, "--memory", memory)
        agent, config = load_ppo(checkpoint, "cpu")
        assert agent.env is not None
        observed = agent.env.unwrapped.observation_space
        step = ActorStep(agent.policy, observed, agent.get_vec_normalize_env(), agent.env.has_attr("action_masks"))
        shown = wrappers(config)
        return step, {
            "agent": self.agent,
            "backbone": config.backbone.name,
            "env": config.env,
            "env_kwargs": config.env_kwargs,
            "wrappers": [name for name in ("previous_action", "previous_reward") if shown[name]],
            "action_space": in_words(agent.action_space),
            "first_action": None,
            "keeps_memory": not config.reset_on_done,
            "steps": agent.num_timesteps,
        }

    def words(self, config: PPOConfig) -> Words:
        paper = "after [1707.06347](https://arxiv.org/abs/1707.06347)"
        return Words("RecurrentPPO agent", "recurrent-ppo", paper)

    def learned_from(self, config: PPOConfig, describe_dataset: Callable[[str], str]) -> str:
        from unroll.agents.evaluation.scoring import task_in_words

        first = ""
        if config.pretrain.dataset:
            first = f", after it had learned from {describe_dataset(config.pretrain.dataset)}"
        if config.pretrain.weights:
            first = f", with the weights of another run at the start{first}"
        return f"It learned in {config.n_envs} environments {task_in_words(config.env, config.env_kwargs)}{first}."

    def env(self, config: PPOConfig) -> str | None:
        return config.env

    def imports(self, config: PPOConfig) -> dict[str, str]:
        return {"--env": config.env} if ":" in config.env else {}

    def fill(self, backbone: str, options: dict[str, Any]) -> dict[str, Any]:
        from unroll.policies.actor_critic import fill_options

        return fill_options(backbone, options)

    def run_config(self, state: dict[str, Any]) -> dict[str, Any] | None:
        config = state.get("config")
        return config if isinstance(config, dict) else None


def _refuse(checkpoint: Path, flag: str, value: Any) -> None:
    """Raise CheckpointError for an option that means nothing to this agent."""
    if value is not None:
        raise CheckpointError(f"{flag} is for decision agents; {checkpoint} holds a RecurrentPPO")
