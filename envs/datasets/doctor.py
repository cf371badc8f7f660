"""What a dataset holds, and what makes it unfit for training."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.reference import normalized_score
from unroll.envs.datasets.registered import env_spaces, is_registered
from unroll.envs.datasets.statistics import read


def problems(episodes: Episodes) -> list[str]:
    """Everything that forbids training on these episodes, one line each, the worst first; empty if they are fit."""
    return _inconsistencies(episodes) or _bad_values(episodes) + _misfits(episodes)


def _inconsistencies(episodes: Episodes) -> list[str]:
    """Arrays that do not fit each other: with these, no row can be trusted."""
    found = []
    n = len(episodes.observations)
    for name in ("actions", "rewards"):
        if len(getattr(episodes, name)) != n:
            found.append(f"{name} has {len(getattr(episodes, name))} rows, observations {n}")
    if len(episodes) == 0 or n == 0:
        found.append("there are no steps")
    elif (episodes.lengths <= 0).any():
        found.append(f"episode {int(np.argmax(episodes.lengths <= 0))} has no steps")
    if episodes.lengths.sum() != n:
        found.append(f"the episodes' lengths add up to {episodes.lengths.sum()}, observations has {n} rows")
    for name in ("terminated", "truncated", "final_observations"):
        values = getattr(episodes, name)
        if values is not None and len(values) != len(episodes):
            found.append(f"{name} has {len(values)} rows for {len(episodes)} episodes")
    space = episodes.action_space
    if isinstance(space, gym.spaces.Box) and episodes.actions.shape[1:] != space.shape:
        found.append(f"actions has rows of shape {episodes.actions.shape[1:]}, its space {space.shape}")
    final = episodes.final_observations
    if final is not None and final.shape[1:] != episodes.observations.shape[1:]:
        found.append(f"final_observations is {final.shape[1]} wide, observations {episodes.observation_dim}")
    return found


def _bad_values(episodes: Episodes) -> list[str]:
    found, values = [], episodes.statistics()
    for name, (count, first) in values.not_finite.items():
        found.append(f"{name} is NaN or infinite in {count} rows, first in row {first}")
    count, first = values.partly_known
    if count:
        found.append(f"the observation after episode {first} is NaN or infinite in part")
    space = episodes.action_space
    if isinstance(space, gym.spaces.Box) and not space.is_bounded():
        found.append(f"actions has no bounds in its space {space}")
    count, first = values.outside
    if count:
        found.append(f"actions lies outside of {_describe(space)} in {count} rows, first in row {first}")
    return found


def _misfits(episodes: Episodes) -> list[str]:
    """Where the data do not fit the environment that they name."""
    spaces = env_spaces(episodes.env_id)
    if spaces is None:
        return []
    found = []
    width, expected = spaces
    if width not in (None, episodes.observation_dim):
        found.append(f"observations is {episodes.observation_dim} wide, {episodes.env_id}'s are {width}")
    space = episodes.action_space
    if isinstance(expected, gym.spaces.Box | gym.spaces.Discrete) and type(space) is not type(expected):
        found.append(f"actions is {_describe(space)}, {episodes.env_id}'s are {_describe(expected)}")
    elif isinstance(space, gym.spaces.Box) and space.shape != expected.shape:
        found.append(f"actions is {_width(space)} wide, {episodes.env_id}'s are {_width(expected)}")
    elif isinstance(space, gym.spaces.Discrete) and isinstance(expected, gym.spaces.Discrete) and space.n > expected.n:
        found.append(f"actions has {space.n} choices, {episodes.env_id} {expected.n}")
    return found


def print_report(episodes: Episodes, source: str, console: Console | None = None) -> bool:
    """Print the report; whether the episodes can be trained on."""
    console = console or Console(highlight=False)
    found = problems(episodes)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    with np.errstate(all="ignore"):  # statistics of NaN are NaN, and the last line says where they are
        rows = {"dataset": source} | ({} if _inconsistencies(episodes) else _facts(episodes))
    for label, value in rows.items():
        table.add_row(label, Text(value))
    console.print(table)
    verdict = f"no: {'; '.join(found)}" if found else "yes"
    console.print(Text(f"can be trained on: {verdict}", style="red" if found else "green"), soft_wrap=True)
    return not found


def _facts(episodes: Episodes) -> dict[str, str]:
    """Label → value, for episodes whose arrays fit each other."""
    returns, reference = episodes.returns, episodes.reference_returns
    ended, cut = int(episodes.terminated.sum()), int(episodes.truncated.sum())
    unfinished = len(episodes) - ended - cut
    env = "none named"
    if episodes.env_id:
        env = f"{episodes.env_id} ({'registered' if is_registered(episodes.env_id) else 'not registered here'})"
    constant = np.flatnonzero(np.ptp(episodes.observations, axis=0) == 0)
    width = f"{episodes.observation_dim} wide" + (f", constant: {_list(constant)}" if len(constant) else "")
    score, origin = "no reference returns, so no score", "none"
    if reference:
        mean, best = (normalized_score(float(value), reference) for value in (returns.mean(), returns.max()))
        score = f"mean {mean:.1f}, max {best:.1f}"
        origin = f"{reference[0]:.6g} is 0, {reference[1]:.6g} is 100 ({episodes.reference_name})"
    return {
        "environment": env,
        "episodes": f"{len(episodes):,} ({ended:,} terminated, {cut:,} truncated, {unfinished:,} unfinished)",
        "steps": f"{episodes.n_steps:,}",
        "lengths": _quantiles(episodes.lengths),
        "returns": _quantiles(returns),
        "normalized": score,
        "reference": origin,
        "observations": width,
        "actions": f"{_describe(episodes.action_space)}, {_saturation(episodes)}",
        "after the end": _final(episodes),
    }


def _final(episodes: Episodes) -> str:
    if episodes.final_observations is None:
        return "no final observations"
    known = int(np.isfinite(episodes.final_observations).all(axis=1).sum())
    return f"final observation known for {known:,} of {len(episodes):,} episodes"


def _saturation(episodes: Episodes) -> str:
    space, actions = episodes.action_space, episodes.actions
    if isinstance(space, gym.spaces.Discrete):
        n = int(space.n)
        chosen = sum(np.bincount(np.clip(part, 0, n - 1), minlength=n) for part in read(actions))
        shares = np.asarray(chosen) / len(actions)
        return "chosen " + " / ".join(f"{share:.1%}" for share in shares[:10]) + (" …" if space.n > 10 else "")
    at_bound = sum(int(((part <= space.low) | (part >= space.high)).sum()) for part in read(actions))
    return f"{at_bound / max(1, actions.size):.1%} of the components at a bound"


def _quantiles(values: np.ndarray) -> str:
    levels = [values.mean(), *np.quantile(values, [0, 0.1, 0.5, 0.9, 1])]
    labels = ("mean", "min", "10 %", "median", "90 %", "max")
    numbers = (f"{level:.0f}" if abs(level) >= 1000 else f"{level:.4g}" for level in levels)
    return ", ".join(f"{label} {number}" for label, number in zip(labels, numbers, strict=True))


def _describe(space: gym.Space) -> str:
    if isinstance(space, gym.spaces.Discrete):
        return f"Discrete({space.n})"
    if not isinstance(space, gym.spaces.Box):
        return str(space)
    low, high = space.low.min(initial=np.inf), space.high.max(initial=-np.inf)
    return f"Box({low:.4g}, {high:.4g}, {_width(space)} wide)"


def _width(space: gym.Space) -> int:
    return int(np.prod(space.shape or ()))


def _list(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:20])) + (f" … ({len(indices)})" if len(indices) > 20 else "")
