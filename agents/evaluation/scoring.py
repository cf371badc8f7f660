"""Evaluate an agent: as JSON, as a table, as a GIF."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.table import Table

from unroll.agents.common.checkpoint import installed_versions
from unroll.agents.common.machine import machine
from unroll.agents.evaluation.play import Episode, Predictor, play, step_latency, summarize
from unroll.agents.evaluation.player import Player
from unroll.agents.evaluation.video import make_gif, prepare_rendering
from unroll.errors import EnvError

WIPED = "wiped every step"


def evaluate(player: Player, n_episodes: int, seed: int) -> dict[str, Any]:
    """Play ``n_episodes`` for each of the player's target returns and score them.

    Reset seeds are seed, seed + 1, …, the same for every target and every agent, so that results can be compared in
    pairs.
    """
    pair, source = player.reference

    def scores(agent: Predictor, targets: list[float | None]) -> list[dict[str, Any]]:
        episodes = {target: [Episode(seed + i, target) for i in range(n_episodes)] for target in targets}
        play(agent, player.make_env, [episode for played in episodes.values() for episode in played])
        return [
            {
                "target_return": target,
                "returns": [episode.total for episode in played],
                "lengths": [episode.length for episode in played],
                **summarize([episode.total for episode in played], pair),
            }
            for target, played in episodes.items()
        ]

    result: dict[str, Any] = {
        "env": player.env_id,
        "versions": installed_versions(),
        "machine": machine(),
        "reference": source,
        **player.facts,
        "episodes": n_episodes,
        "seeds": [seed + i for i in range(n_episodes)],
        "results": scores(player.agent, player.targets),
    }
    if player.forgetful is not None:
        result["ablation"] = {"memory": WIPED, **scores(player.forgetful, [None])[0]}
    env = player.make_env()
    result["step_latency_us"] = step_latency(player.agent, env, player.warm)
    env.close()
    return result


def headline(evaluation: dict[str, Any]) -> dict[str, float]:
    """The scalars of an evaluation under TensorBoard's tags: the highest target's, then each target's own."""
    results = sorted(evaluation["results"], key=lambda result: result["target_return"] or 0)
    scalars = {"perf/step_latency_us": evaluation["step_latency_us"]}
    for result in results:
        for tag in ("return_mean", "normalized_score"):
            if result[tag] is not None:
                scalars[f"eval/{tag}"] = result[tag]
                if result["target_return"] is not None:
                    scalars[f"eval_targets/{tag}_at_{result['target_return']:g}"] = result[tag]
    if "ablation" in evaluation:
        scalars["eval/return_mean_without_memory"] = evaluation["ablation"]["return_mean"]
    return scalars


def score_table(evaluation: dict[str, Any]) -> Table:
    """The evaluation as a table for the terminal."""
    asked = evaluation["agent"] == "DecisionAgent"
    title = f"{evaluation['env']}, MuJoCo {evaluation['versions']['mujoco']}: {evaluation['episodes']} episodes"
    table = Table(title=f"{title} each, {evaluation['memory']} memory" if asked else title)
    for column in ("target return" if asked else "memory", "return", "95 % interval", "normalised score", "length"):
        table.add_column(column, justify="right")
    ablation = [evaluation["ablation"]] if "ablation" in evaluation else []
    for result in evaluation["results"] + ablation:
        target, score = result["target_return"], result["normalized_score"]
        low, high = result["return_interval"]
        table.add_row(
            ("none" if target is None else f"{target:g}") if asked else result.get("memory", evaluation["memory"]),
            f"{result['return_mean']:.{_digits(result)}f}",
            f"{low:.{_digits(result)}f} … {high:.{_digits(result)}f}",
            "no reference" if score is None else f"{score:.1f}",
            f"{sum(result['lengths']) / len(result['lengths']):.0f}",
        )
    captions = []
    if evaluation.get("dataset_return_mean") is not None:
        captions.append(f"mean return of the dataset {evaluation['dataset']}: {evaluation['dataset_return_mean']:.1f}")
    if evaluation["reference"]:
        captions.append(f"0 and 100: the random and expert returns of {evaluation['reference']}")
    table.caption = "; ".join(captions) or None
    return table


def _digits(result: dict[str, Any]) -> int:
    """Decimals that show a return: tasks of memory pay between -1 and 1."""
    return 1 if max(map(abs, result["returns"])) > 10 else 3


def write_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(evaluation, indent=1))
    os.replace(temporary, path)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What ``write_evaluation`` wrote; None where there is nothing, or nothing that can be shown: it can be made
    again."""
    try:
        evaluation = json.loads(path.read_text())
        score_table(evaluation)
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None
    return evaluation


def try_gif(player: Player, evaluation: dict[str, Any], tell: Callable[[str], Any]) -> bytes | None:
    """A GIF of the beginning of one episode at the highest target, every third step; where rendering is missing,
    None and why."""
    frames: list[Any] = []

    def make() -> gym.Env:
        try:  # off-screen rendering without a GPU takes a tenth of a second for a large picture
            return player.make_env(render_mode="rgb_array", width=240, height=240)
        except EnvError:
            return player.make_env(render_mode="rgb_array")

    def keep(env: gym.Env) -> None:
        if episode.length % 3 == 0 and episode.length < 300:
            frames.append(env.render())

    highest = max(evaluation["results"], key=lambda result: result["target_return"] or 0)
    episode = Episode(evaluation["seeds"][0], highest["target_return"])
    missing = prepare_rendering()  # of what MuJoCo draws with; others draw without
    try:
        play(player.agent, make, [episode], on_step=keep)
        return make_gif(frames, fps=20)
    except Exception as error:  # OpenGL and its bindings raise whatever they like, and a picture is not worth a run
        tell(f"no video: {missing or ' '.join(str(error).split())}")
    return None
