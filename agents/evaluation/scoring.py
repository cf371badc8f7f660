"""Evaluate an agent: as JSON, as a table, as metrics."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mujoco
import torch
from rich.table import Table

from unroll.agents.common.checkpoint import installed_versions
from unroll.agents.common.machine import machine
from unroll.agents.evaluation.play import Episode, Predictor, play, step_latency, summarize
from unroll.agents.evaluation.player import Player
from unroll.envs.datasets.registered import in_words
from unroll.errors import EnvError
from unroll.files import write_whole
from unroll.tables import exact, significant

log = logging.getLogger(__name__)
NOTHING = "–"  # the cell of a value that there is not
WIPED = "wiped every step"
SAMPLED = "actions drawn from the policy"


def evaluate(
    player: Player, n_episodes: int | None = None, seed: int | None = None, check: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Play ``n_episodes`` for each of the player's target returns and score them; None: the player's own numbers.

    Reset seeds are seed, seed + 1, …, the same for every target and every agent, so that results can be compared in
    pairs. ``check()`` is called before every step, and may raise. Actions that are drawn from the policy come from
    PyTorch's generator, which then begins at ``seed``.

    Raises:
        EnvError: an environment cannot be made or played in, or a return is not finite.
    """
    if n_episodes is None:
        n_episodes = player.episodes
    if seed is None:
        seed = player.seed
    result: dict[str, Any] = {
        "env": player.env_id,
        "versions": installed_versions(),
        "machine": machine(),
        "reference": player.reference[1],
        **player.facts,
        "episodes": n_episodes,
        "seeds": [seed + i for i in range(n_episodes)],
    }
    if player.env_kwargs:
        result["env_kwargs"] = player.env_kwargs
    if not player.deterministic:
        result["actions"] = SAMPLED
        torch.manual_seed(seed)
    lending = player.lending or contextlib.nullcontext
    with lending():
        result["results"] = scores(player, player.agent, player.targets, result["seeds"], check)
        if player.forgetful is not None:
            (wiped,) = scores(player, player.forgetful, [None], result["seeds"], check)
            result["ablation"] = {"memory": WIPED, **wiped}

        # What a step costs, without the environment's own.
        env = player.make_env()
        result["step_latency_us"] = step_latency(player.agent, env, player.warm, target_return=player.targets[0])
        if isinstance(getattr(env.unwrapped, "model", None), mujoco.MjModel):
            result["simulator"] = f"MuJoCo {result['versions']['mujoco']}"
        env.close()

    if any("cut" in one for one in all_results(result)):
        result["max_steps"] = player.max_steps
        log.warning("%s; evaluation.max_steps sets where", cuts_in_words(result))
    return result


def scores(
    player: Player, agent: Predictor, targets: list[float | None], seeds: list[int], check: Callable[[], None]
) -> list[dict[str, Any]]:
    """Play an episode of each seed for each target, and sum up what they returned, by target."""
    # All targets at once, so that the policy sees one large batch.
    episodes = {target: [Episode(seed, target) for seed in seeds] for target in targets}
    everything = [episode for played in episodes.values() for episode in played]
    play(
        agent,
        player.make_env,
        everything,
        1 if player.chained else player.n_envs,
        player.deterministic,
        max_steps=player.max_steps,
        check=check,
    )

    found = []
    for target, played in episodes.items():
        returns = [episode.total for episode in played]
        for episode in played:
            if not math.isfinite(episode.total):
                raise EnvError(
                    f"{player.env_id}: the return of the episode with seed {episode.seed} is {episode.total}"
                )
        result: dict[str, Any] = {
            "target_return": target,
            "returns": returns,
            "lengths": [episode.length for episode in played],
            **summarize(returns, player.reference[0]),
        }
        cut = sum(episode.cut for episode in played)
        if cut:
            result["cut"] = cut
        found.append(result)
    return found


def is_played_so(evaluation: dict[str, Any], player: Player) -> bool:
    """Whether an evaluation has played the episodes that ``evaluate(player)`` would play, in the same way."""
    played = {
        "env": player.env_id,
        "seeds": [player.seed + i for i in range(player.episodes)],
        "memory": player.facts.get("memory"),
        "actions": None if player.deterministic else SAMPLED,
    }
    if any(evaluation.get(name) != value for name, value in played.items()):
        return False
    if evaluation.get("env_kwargs", {}) != player.env_kwargs:
        return False
    if ("ablation" in evaluation) != (player.forgetful is not None):
        return False
    if [result["target_return"] for result in evaluation["results"]] != player.targets:
        return False

    # The evaluation names its limit where it has cut an episode.
    longest = max(length for result in all_results(evaluation) for length in result["lengths"])
    return longest <= player.max_steps and evaluation.get("max_steps", player.max_steps) == player.max_steps


def all_results(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of each target, and of the wiped memory if that was played."""
    results = list(evaluation["results"])
    if "ablation" in evaluation:
        results.append(evaluation["ablation"])
    return results


def task_in_words(env: str, env_kwargs: dict[str, Any] | None) -> str:
    """Name an environment with its arguments."""
    return f"{env} ({in_words(env_kwargs)})" if env_kwargs else env


def cut_and_played(evaluation: dict[str, Any]) -> tuple[int, int]:
    """Count the episodes that did not end by themselves, and all of them."""
    results = all_results(evaluation)
    return sum(result.get("cut", 0) for result in results), len(results) * evaluation["episodes"]


def cuts_in_words(evaluation: dict[str, Any]) -> str:
    """Say how many episodes did not end by themselves."""
    cut, played = cut_and_played(evaluation)
    return f"{cut} of {played} episodes of {evaluation['env']} were cut after {evaluation['max_steps']:,} steps"


def highest(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The result at the highest target: the headline of an evaluation."""
    return max(evaluation["results"], key=lambda result: result["target_return"] or 0)


def headline(evaluation: dict[str, Any]) -> dict[str, float]:
    """The scalars of an evaluation under TensorBoard's tags: the highest target's, then each target's own."""
    scalars = {
        "perf/step_latency_us": evaluation["step_latency_us"],
        "perf/evaluation_episodes": float(cut_and_played(evaluation)[1]),
    }
    for result in sorted(evaluation["results"], key=lambda result: result["target_return"] or 0):
        for tag in ("return_mean", "normalized_score"):
            if result[tag] is None:
                continue
            scalars[f"eval/{tag}"] = result[tag]
            if result["target_return"] is not None:
                scalars[f"eval_targets/{tag}_at_{exact(result['target_return'])}"] = result[tag]
    if "ablation" in evaluation:
        scalars["eval/return_mean_without_memory"] = evaluation["ablation"]["return_mean"]
    return scalars


def score_table(evaluation: dict[str, Any]) -> Table:
    """The evaluation as a table for the terminal.

    Its first column is what the rows differ in: the return that was asked for, or the memory.
    """
    asked = any(result["target_return"] is not None for result in evaluation["results"])
    results = all_results(evaluation)

    env = task_in_words(evaluation["env"], evaluation.get("env_kwargs"))
    if "simulator" in evaluation:
        env += f", {evaluation['simulator']}"
    title = f"{env}: {evaluation['episodes']} episodes"
    if asked:
        title = f"{title} each, {evaluation['memory']} memory"
    if "actions" in evaluation:
        title += f", {evaluation['actions']}"
    table = Table(title=title)
    first = "target return" if asked else "memory"
    for column in (first, "return", "95 % interval", "normalised score", "length"):
        table.add_column(column, justify="right")

    for result in results:
        score = result["normalized_score"]
        interval = NOTHING
        if len(result["returns"]) > 1:  # of a single one older files have an interval of no width
            low, high = result["return_interval"]
            interval = f"{_beside(result, low)} … {_beside(result, high)}"
        table.add_row(
            exact(result["target_return"]) if asked else result.get("memory", evaluation["memory"]),
            _beside(result, result["return_mean"]),
            interval,
            "no reference" if score is None else f"{score:.1f}",
            f"{sum(result['lengths']) / len(result['lengths']):.0f}",
        )

    captions = ["the interval is over the episodes of this one agent, not over seeds"]
    if evaluation["episodes"] == 1:
        captions = ["of one episode there is no interval"]
    if "max_steps" in evaluation:
        captions.append(cuts_in_words(evaluation))
    if evaluation.get("dataset_return_mean") is not None:
        mean = significant(evaluation["dataset_return_mean"])
        captions.append(f"mean return of the dataset {evaluation['dataset']}: {mean}")
    beyond = asked_beyond([result["target_return"] for result in results], evaluation.get("learned_returns"))
    if beyond:
        captions.append(beyond)
    if evaluation["reference"]:
        captions.append(f"0 and 100: the random and expert returns of {evaluation['reference']}")
    table.caption = "; ".join(captions)
    return table


def asked_beyond(targets: Sequence[float | None], learned: Sequence[float] | None) -> str | None:
    """Say which returns are asked for that no episode has which the agent has learned from; None where there are none.

    ``learned`` is the least and the largest of these, None where that is not known.
    """
    if learned is None:
        return None
    least, best = learned
    slack = 0.05 * max(abs(least), abs(best))
    strange = [exact(t) for t in targets if t is not None and not least - slack <= t <= best + slack]
    if not strange:
        return None
    return (
        f"it has learned from episodes that return {significant(least)} to {significant(best)}, and nothing in them "
        f"shows how to reach {' and '.join(strange)}"
    )


def _beside(result: dict[str, Any], value: float) -> str:
    """Write a return with as many digits as all of a result's: tasks of memory pay between -1 and 1."""
    largest = max(map(abs, result["returns"]))
    return significant(value, largest, least=1 if largest > 10 else 3)


def write_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    write_whole(path, json.dumps(evaluation, indent=1))


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Read what ``write_evaluation`` wrote; None where there is nothing that can be shown: it can be made again."""
    try:
        evaluation = json.loads(path.read_text())
        score_table(evaluation)
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None
    return evaluation
