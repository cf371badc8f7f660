"""A decision agent in its environment."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym

from unroll.agents.common.machine import device_name
from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.decision.task import check_actions
from unroll.agents.evaluation.player import Player
from unroll.envs.datasets.conversion import FLOAT32_MAX
from unroll.envs.datasets.images import check_parts, parts_in_words, parts_of
from unroll.envs.datasets.registered import is_registered
from unroll.envs.make import make_env
from unroll.envs.own import registered_id
from unroll.envs.spaces import in_words
from unroll.envs.wrappers import for_decisions
from unroll.errors import EnvError, HyperparameterError
from unroll.policies.decision import UNLIMITED
from unroll.tables import decimals


def decision_player(
    agent: DecisionAgent,
    env_name: str,
    targets: list[float] | None,
    memory: Literal["carried", "window"] | str,
    env_kwargs: dict[str, Any] | None = None,
) -> Player:
    """Put a decision agent in its environment; it has this memory from now on.

    It is asked for each of ``targets``. None: for the best that it can get, or, with the condition ``return``, for its
    default ones. Behaviour cloning is asked for nothing.
    ``env_kwargs`` None: what the dataset says of its own environment.

    Raises:
        EnvError: the environment does not exist, or does not show and take what the policy was trained on, or the
            dataset says more of it than can be taken from a file.
        HyperparameterError: a return is asked for that float32 cannot hold.
    """
    env_id = registered_id(env_name)
    config = agent.policy.config
    task = agent.task
    own = said_by_dataset(env_id, task) if env_kwargs is None else dict(env_kwargs)
    images = config.get("parts") is not None
    check_spaces(env_id, own, config)
    agent.policy.memory = memory  # type: ignore[assignment]

    if targets is None and config["condition"] == "return":
        targets = default_targets(agent)
    asked: list[float | None] = [None]
    if targets is not None and config["condition"] != "none":
        asked = list(dict.fromkeys(targets))
        for target in targets:
            if abs(target) > FLOAT32_MAX:
                raise HyperparameterError(
                    f"a return of {target:g} cannot be asked for: float32 holds up to {FLOAT32_MAX:.2g}"
                )
    same = env_id == task.get("env") and own == task.get("env_kwargs", {})
    known = same and task.get("reference_returns")
    return Player(
        agent=agent,
        env_id=env_id,
        make_env=lambda **kwargs: show(make_env(env_id, env_kwargs=own, images=images, **kwargs)),
        show=show,
        images=images,
        env_kwargs=own,
        facts={
            "agent": "DecisionAgent",
            "dataset": task.get("dataset"),
            "dataset_return_mean": task.get("return_mean"),
            "learned_returns": learned_returns(agent),
            "updates": agent.num_timesteps,
            "memory": memory,
            "device": device_name(agent.device),
        },
        targets=asked,
        reference=(task["reference_returns"], task["reference_name"]) if known else (None, None),
        warm=config["context"],
        has_distribution=agent.policy.action.is_distribution,
    )


def show(env: gym.Env) -> gym.Env:
    """Put around an environment what a decision agent sees. Who asks for no return gets as much as can be had."""
    return for_decisions(env, UNLIMITED)


def said_by_dataset(env_id: str, task: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the dataset's environment is made; none for another environment.

    Raises:
        EnvError: the dataset was recorded in something that these arguments do not describe.
    """
    if env_id != task.get("env"):
        return {}
    if task.get("env_doubt"):
        raise EnvError(undecided(task["dataset"], env_id, task["env_doubt"]))
    return task.get("env_kwargs", {})


def own_task(
    env_name: str | None, env_kwargs: dict[str, Any] | None, task: dict[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """Return the environment that a config and the dataset name, with its arguments; None if they name none.

    What the dataset alone names, and is not to be had here, is none in which the run could be scored.
    """
    env_id = (env_name or task.get("env") or "").rpartition(":")[2]
    if not env_id or not (env_name or is_registered(env_id)):
        return None
    if env_kwargs is not None:
        return env_id, env_kwargs
    doubtful = env_id == task.get("env") and task.get("env_doubt")
    return None if doubtful else (env_id, said_by_dataset(env_id, task))


def undecided(dataset: str, env_id: str, doubt: str) -> str:
    """Say why an agent is not evaluated in an environment of which a file says more than an id and plain arguments."""
    return (
        f"{dataset} was recorded in {env_id} with {doubt}, which cannot be taken from a file; --evaluation.env_kwargs "
        "says how it is made instead, '{}': as it is registered"
    )


def check_spaces(env_id: str, env_kwargs: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise EnvError unless the environment observes and acts as the policy of this config does."""
    trained = config.get("parts")
    env = make_env(env_id, env_kwargs=env_kwargs, images=trained is not None)
    shape = env.observation_space.shape
    shown = parts_of(env.observation_space)
    actions = env.action_space
    env.close()
    expected = config["observation_dim"]
    if trained is None and shape != (expected,):
        raise EnvError(f"{env_id} observes {shape}, the policy was trained on {expected} numbers")
    if trained is not None and shown != check_parts(trained):
        observed = parts_in_words(shown) if shown else in_words(env.observation_space)
        raise EnvError(f"{env_id} observes {observed}, the policy was trained on {parts_in_words(trained)}")
    check_actions(env_id, actions, config)


def learned_returns(agent: DecisionAgent) -> list[float] | None:
    """The least and the largest return of the episodes that it has learned from; None where that is not known."""
    if not agent.task:
        return None
    quantiles = agent.task["return_quantiles"]
    return [agent.task.get("return_least", quantiles["0"]), quantiles["1"]]


def largest_target(agent: DecisionAgent) -> float:
    """The return that an agent is asked for whose user says none: of its default ones the largest.

    It means nothing to one that follows none, or has seen no data.
    """
    if agent.policy.config["condition"] != "return":
        return UNLIMITED
    return default_targets(agent)[-1] if agent.task else 0.0


def default_targets(agent: DecisionAgent) -> list[float]:
    """The median, the 90 % quantile and the maximum of the dataset's returns.

    They are rounded to a decimal, or to three significant digits of a small one. Two of them are the same only where
    the quantiles are.
    """
    quantiles = [agent.task["return_quantiles"][q] for q in ("0.5", "0.9", "1")]
    rounded: list[float] = []
    for more in range(17):  # digits of a float64
        rounded = [round(value, max(1, decimals(value)) + more) for value in quantiles]
        if len(set(rounded)) == len(set(quantiles)):
            return rounded
    return quantiles
