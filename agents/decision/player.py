"""A decision agent in its environment."""

from __future__ import annotations

from typing import Any, Literal

from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.evaluation.player import Player
from unroll.envs.make import make_env
from unroll.envs.own import registered_id
from unroll.envs.wrappers import ReturnToGo
from unroll.errors import EnvError
from unroll.policies.actions import build_space


def decision_player(
    agent: DecisionAgent,
    env_name: str,
    targets: list[float] | None,
    memory: Literal["carried", "window"] | str,
    env_kwargs: dict[str, Any] | None = None,
) -> Player:
    """Put a decision agent in its environment; it has this memory from now on.

    It is asked for each of ``targets``, None: for its default ones. Without a return condition it is asked for nothing.

    Raises:
        EnvError: the environment does not exist, or does not show and take what the policy was trained on.
    """
    env_id = registered_id(env_name)
    own = dict(env_kwargs or {})
    config = agent.policy.config
    task = agent.task
    check_spaces(env_id, own, config)
    agent.policy.memory = memory  # type: ignore[assignment]

    asked: list[float | None] = [None]
    if config["condition"] == "return":
        asked = list(dict.fromkeys(default_targets(agent) if targets is None else targets))
    known = env_id == task.get("env") and task.get("reference_returns")
    return Player(
        agent=agent,
        env_id=env_id,
        make_env=lambda **kwargs: ReturnToGo(make_env(env_id, env_kwargs=own, **kwargs)),
        show=ReturnToGo,
        env_kwargs=own,
        facts={
            "agent": "DecisionAgent",
            "dataset": task.get("dataset"),
            "dataset_return_mean": task.get("return_mean"),
            "updates": agent.num_timesteps,
            "memory": memory,
        },
        targets=asked,
        reference=(task["reference_returns"], task["reference_name"]) if known else (None, None),
        warm=config["context"],
    )


def check_spaces(env_id: str, env_kwargs: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise EnvError unless the environment observes and acts as the policy of this config does."""
    env = make_env(env_id, env_kwargs=env_kwargs)
    shape = env.observation_space.shape
    actions = env.action_space
    env.close()
    expected = config["observation_dim"]
    if shape != (expected,):
        raise EnvError(f"{env_id} observes {shape}, the policy was trained on {expected} numbers")
    space = build_space(config["action_space"])
    if type(actions) is not type(space) or actions.shape != space.shape:
        raise EnvError(f"{env_id} takes actions of {actions}, the policy was trained on {space}")


def default_targets(agent: DecisionAgent) -> list[float]:
    """The median, the 90 % quantile and the maximum of the dataset's returns."""
    quantiles = agent.task["return_quantiles"]
    return [round(quantiles[q], 1) for q in ("0.5", "0.9", "1")]
