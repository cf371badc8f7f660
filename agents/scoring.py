"""Evaluate a decision agent as its run declares: seeds, target returns, memory; as JSON, as a table, as a GIF."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from rich.table import Table

from agents.checkpoint import installed_versions
from agents.decision import DecisionAgent
from agents.evaluation import Episode, play, step_latency, summarize
from envs.make import EnvironmentError, make_env
from envs.rendering import make_gif, prepare_rendering
from envs.wrappers import ReturnToGo
from policies.actions import build_space


def default_targets(agent: DecisionAgent) -> list[float]:
    """The median, the 90 % quantile and the maximum of the dataset's returns."""
    quantiles = agent.task["return_quantiles"]
    return [round(quantiles[q], 1) for q in ("0.5", "0.9", "1")]


def evaluate(
    agent: DecisionAgent,
    env_id: str,
    targets: list[float] | None,
    n_episodes: int,
    seed: int,
    memory: Literal["carried", "window"],
) -> dict[str, Any]:
    """Play ``n_episodes`` for each target return (an agent without a return condition: once) and score them.

    Reset seeds are seed, seed + 1, …, the same for every target and every agent, so that results can be compared in
    pairs.
    """
    env = check_fit(agent, env_id)
    agent.policy.memory = memory
    asked: list[float | None] = [None]
    if agent.policy.config["condition"] == "return":
        asked = list(dict.fromkeys(default_targets(agent) if targets is None else targets))
    episodes = {target: [Episode(seed + i, target) for i in range(n_episodes)] for target in asked}
    play(agent, lambda: ReturnToGo(make_env(env_id)), [episode for played in episodes.values() for episode in played])
    reference = agent.task.get("reference_returns") if env_id == agent.task.get("env") else None
    results = [
        {
            "target_return": target,
            "returns": [episode.total for episode in played],
            "lengths": [episode.length for episode in played],
            **summarize([episode.total for episode in played], reference),
        }
        for target, played in episodes.items()
    ]
    latency = step_latency(agent, env, warm=agent.policy.config["context"])
    env.close()
    return {
        "env": env_id,
        "versions": installed_versions(),
        "reference": agent.task.get("reference_name") if reference else None,
        "dataset": agent.task.get("dataset"),
        "dataset_return_mean": agent.task.get("return_mean"),
        "updates": agent.num_timesteps,
        "memory": memory,
        "episodes": n_episodes,
        "seeds": [seed + i for i in range(n_episodes)],
        "step_latency_us": latency,
        "results": results,
    }


def check_fit(agent: DecisionAgent, env_id: str) -> ReturnToGo:
    """The environment, as the agent sees it.

    Raises:
        EnvironmentError: it does not exist, or does not show and take what the policy was trained on.
    """
    env = ReturnToGo(make_env(env_id))
    width, space = env.env.observation_space.shape, build_space(agent.policy.config["action_space"])
    if width != (agent.policy.config["observation_dim"],):
        expected = agent.policy.config["observation_dim"]
        raise EnvironmentError(f"{env_id} observes {width}, the policy was trained on {expected} numbers")
    if type(env.action_space) is not type(space) or env.action_space.shape != space.shape:
        raise EnvironmentError(f"{env_id} takes actions of {env.action_space}, the policy was trained on {space}")
    return env


def headline(evaluation: dict[str, Any]) -> dict[str, float]:
    """The scalars of an evaluation under TensorBoard's tags: the highest target's, then each target's own."""
    results = sorted(evaluation["results"], key=lambda result: result["target_return"] or 0)
    scalars = {"perf/step_latency_us": evaluation["step_latency_us"]}
    for result in results:
        suffix = "" if result["target_return"] is None else f"_at_{result['target_return']:g}"
        for tag in ("return_mean", "normalized_score"):
            if result[tag] is not None:
                scalars[f"eval/{tag}"] = scalars[f"eval_targets/{tag}{suffix}"] = result[tag]
    return scalars


def score_table(evaluation: dict[str, Any]) -> Table:
    """The evaluation as a table for the terminal."""
    mujoco = f", MuJoCo {evaluation['versions']['mujoco']}"
    table = Table(
        title=f"{evaluation['env']}{mujoco}: {evaluation['episodes']} episodes each, {evaluation['memory']} memory"
    )
    for column in ("target return", "return", "95 % interval", "normalised score", "length"):
        table.add_column(column, justify="right")
    for result in evaluation["results"]:
        target, score = result["target_return"], result["normalized_score"]
        low, high = result["return_interval"]
        table.add_row(
            "none" if target is None else f"{target:g}",
            f"{result['return_mean']:.1f}",
            f"{low:.1f} … {high:.1f}",
            "no reference" if score is None else f"{score:.1f}",
            f"{sum(result['lengths']) / len(result['lengths']):.0f}",
        )
    mean = evaluation["dataset_return_mean"]
    table.caption = f"mean return of the dataset {evaluation['dataset']}: {mean:.1f}"
    if evaluation["reference"]:
        table.caption += f"; 0 and 100: the random and expert returns of {evaluation['reference']}"
    return table


def write_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(evaluation, indent=1))
    os.replace(temporary, path)


def try_gif(agent: DecisionAgent, evaluation: dict[str, Any], tell: Callable[[str], Any]) -> bytes | None:
    """A GIF of the beginning of one episode at the highest target, every third step; where rendering is missing,
    None and why."""
    frames: list[Any] = []

    def make() -> gym.Env:
        try:  # off-screen rendering without a GPU takes a tenth of a second for a large picture
            env = make_env(evaluation["env"], render_mode="rgb_array", width=240, height=240)
        except EnvironmentError:
            env = make_env(evaluation["env"], render_mode="rgb_array")
        return ReturnToGo(env)

    def keep(env: gym.Env) -> None:
        if episode.length % 3 == 0 and episode.length < 300:
            frames.append(env.render())

    highest = max(evaluation["results"], key=lambda result: result["target_return"] or 0)
    episode = Episode(evaluation["seeds"][0], highest["target_return"])
    reason = prepare_rendering()
    if reason is None:
        try:
            play(agent, make, [episode], on_step=keep)
            return make_gif(frames, fps=20)
        except Exception as error:  # OpenGL and its bindings raise whatever they like, and a picture is not worth a run
            reason = " ".join(str(error).split())
    tell(f"no video: {reason}")
    return None
