"""Say what a dataset holds, and what makes it unfit for training."""

from __future__ import annotations

import dataclasses
import logging

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unroll.envs.datasets.conversion import FLOAT32_MAX, Precision, as_float32, can_be_scaled
from unroll.envs.datasets.episodes import Episodes, is_mapped
from unroll.envs.datasets.images import parts_in_words, parts_of, row_bytes
from unroll.envs.datasets.reference import normalized_score
from unroll.envs.datasets.registered import (
    in_words,
    is_env_id,
    is_registered,
    known_env,
    not_plain,
    step_limit,
    why_unknown,
)
from unroll.envs.datasets.starts import unlike_starts
from unroll.envs.datasets.statistics import read
from unroll.errors import DatasetError, one_line

log = logging.getLogger(__name__)


def problems(episodes: Episodes) -> list[str]:
    """List what forbids training on these episodes, one line each, the worst first."""
    found = inconsistencies(episodes)
    if not found:  # otherwise no row can be trusted
        found = _bad_values(episodes) + _misfits(episodes)
    return found


def check_fit(episodes: Episodes) -> None:
    """Raise DatasetError where episodes cannot be learned from, whoever made them.

    Arrays in a file were looked through when it was read, and are not read again. Nor is their environment made.
    """
    if not isinstance(episodes, Episodes):
        raise DatasetError(
            f"episodes is of type {type(episodes).__name__}, not Episodes, which load_episodes(…) makes of one or "
            "several sources"
        )
    found = inconsistencies(episodes) or _unsaved(episodes)
    if not found and not is_mapped(episodes.observations):
        # Statistics that were kept may be those of other values, which these have replaced.
        found = _bad_values(dataclasses.replace(episodes, known_statistics=None)) or _beyond_float32(episodes)
    if found:
        raise DatasetError(f"{episodes.name}: {first_of(found)}")


def first_of(found: list[str]) -> str:
    """Return the first of several lines, and how many more there are."""
    return found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else "")


def remarks(episodes: Episodes) -> list[str]:
    """List what a user should know of these episodes, one line each. It forbids nothing."""
    found = list(episodes.remarks)
    if inconsistencies(episodes):
        return found

    one_step = int((episodes.lengths == 1).sum())
    if one_step > 1 and one_step >= 0.5 * len(episodes):
        found.append(f"{one_step:,} of {len(episodes):,} episodes have one step: are its terminals 1 - done?")
    limit = step_limit(episodes.env_id, episodes.env_kwargs)
    longest = int(episodes.lengths.max())
    if limit is not None and longest > limit:
        first = int(np.argmax(episodes.lengths))
        found.append(
            f"episode {first} has {longest:,} steps, {episodes.env_id} ends after {limit:,}: is an end of an episode "
            "missing?"
        )
    begins = unlike_starts(episodes, episodes.env_id, episodes.env_kwargs)
    if begins:
        found.append(begins)
    return found


def inconsistencies(episodes: Episodes) -> list[str]:
    """List the arrays that do not fit each other."""
    found = _malformed(episodes)
    if found:
        return found
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

    if episodes.parts is not None and episodes.observation_dim != row_bytes(episodes.parts):
        found.append(f"observations is {episodes.observation_dim} bytes wide, {parts_in_words(episodes.parts)} are not")
    space = episodes.action_space
    for name in ("observations", "actions"):
        if 0 in getattr(episodes, name).shape[1:]:
            found.append(f"{name} is 0 wide")
    if isinstance(space, gym.spaces.Box) and episodes.actions.shape[1:] != space.shape:
        found.append(f"actions has rows of shape {episodes.actions.shape[1:]}, its space {space.shape}")
    final = episodes.final_observations
    if final is not None and final.shape[1:] != episodes.observations.shape[1:]:
        found.append(f"final_observations is {final.shape[1]} wide, observations {episodes.observation_dim}")
    return found


def _malformed(episodes: Episodes) -> list[str]:
    """List what is no array of the form that Episodes describes, or no space of actions that can be learned."""
    space = episodes.action_space
    row = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    if not row and not isinstance(space, gym.spaces.Discrete):
        return [f"actions is of {one_line(space)}; a Box of one axis or a Discrete is needed"]
    found = []
    forms = {
        "observations": (2, "biuf"),
        "actions": (2, "biuf") if row else (1, "iu"),
        "rewards": (1, "biuf"),
        "lengths": (1, "i"),  # with int64, NumPy makes floats of uint64
        "terminated": (1, "b"),
        "truncated": (1, "b"),
        "final_observations": (2, "biuf"),
    }
    for name, (axes, kinds) in forms.items():
        values = getattr(episodes, name)
        if name == "final_observations" and values is None:
            continue
        if not hasattr(values, "dtype"):
            found.append(f"{name} is of type {type(values).__name__}, not an array")
        elif values.ndim != axes:
            found.append(f"{name} has {values.ndim} axes, not {axes}")
        elif values.dtype.kind not in kinds:
            wanted = {"b": "true or false", "iu": "whole numbers", "biuf": "numbers", "i": "int64"}[kinds]
            found.append(f"{name} is of {values.dtype}, not of {wanted}")
        elif episodes.parts is not None and "observations" in name and values.dtype != np.uint8:
            found.append(f"{name} is of {values.dtype}; with parts it is bytes (uint8), a pixel from 0 to 255")
    return found


def _beyond_float32(episodes: Episodes) -> list[str]:
    """List where finite numbers are too large to be learned from as float32, and log what else it loses of them.

    Of those that are float32, as a file's are, that was said when they were read.
    """
    found = []
    for name in ("observations", "rewards"):
        values = getattr(episodes, name)
        if np.can_cast(values.dtype, np.float32):
            continue
        precision = Precision(name)
        fits = True
        for part in read(values):
            precision.see(None, part)
            fits &= bool(np.isfinite(as_float32(part)).all())
        if not fits:
            found += precision.remarks()
            continue
        for line in precision.remarks():
            log.warning("%s: %s", episodes.name, line)
    return found


def _unsaved(episodes: Episodes) -> list[str]:
    """List what is said of the environment and no checkpoint can hold."""
    found = []
    if episodes.env_id is not None and not is_env_id(episodes.env_id):
        found.append(f"env_id {episodes.env_id!r} is not the id of an environment")
    wrong = not_plain(episodes.env_kwargs)
    if wrong:
        found.append(f"env_kwargs: {wrong[0]} is no plain value")
    return found


def _bad_values(episodes: Episodes) -> list[str]:
    """List the arrays that hold NaN, infinities or actions outside of their space."""
    found = []
    statistics = episodes.statistics()
    for name, (count, first) in statistics.not_finite.items():
        found.append(f"{name} is NaN or infinite in {count} rows, first in row {first}")

    count, first = statistics.partly_known
    if count:
        found.append(f"the observation after episode {first} is NaN or infinite in part")

    if not found:
        found += _unbounded_returns(episodes, statistics.largest_reward)

    space = episodes.action_space
    if isinstance(space, gym.spaces.Box) and not space.is_bounded():
        found.append(f"actions has no bounds in its space {describe_space(space)}")
    elif isinstance(space, gym.spaces.Box) and not can_be_scaled(space):
        found.append(f"actions has bounds too far apart for float32, {describe_space(space)}")
    count, first = statistics.outside
    if count:
        found.append(f"actions lies outside of {describe_space(space)} in {count} rows, first in row {first}")
    return found


def _unbounded_returns(episodes: Episodes, largest_reward: float) -> list[str]:
    """List returns-to-go that float32 cannot hold, as the policy takes them."""
    if largest_reward * int(episodes.lengths.max()) <= FLOAT32_MAX:
        return []
    largest = max(float(np.abs(part).max()) for part in episodes.returns_to_go_in_blocks())
    if largest <= FLOAT32_MAX:
        return []
    return [f"rewards add up to {largest:.3g}, float32 holds up to {FLOAT32_MAX:.2g}: divide them by a constant"]


def _misfits(episodes: Episodes) -> list[str]:
    """List where the data do not fit the environment that they name."""
    known = known_env(episodes.env_id, episodes.env_kwargs)
    if known is None:
        return []

    found = []
    expected = known.action_space
    if episodes.parts is not None:
        shown = parts_of(known.observation_space)
        if shown != episodes.parts:
            theirs = parts_in_words(shown) if shown else "no images"
            found.append(f"observations is {parts_in_words(episodes.parts)}, {episodes.env_id}'s are {theirs}")
    elif known.width not in (None, episodes.observation_dim):
        found.append(f"observations is {episodes.observation_dim} wide, {episodes.env_id}'s are {known.width}")

    # A recording need not show all choices: the loader counts them as the environment does.
    space = episodes.action_space
    if type(space) is not type(expected):
        found.append(f"actions is {describe_space(space)}, {episodes.env_id}'s are {describe_space(expected)}")
    elif isinstance(space, gym.spaces.Box):
        if _width(space) != _width(expected):  # actions of any shape are held as rows
            found.append(f"actions is {_width(space)} wide, {episodes.env_id}'s are {_width(expected)}")
    elif isinstance(expected, gym.spaces.Discrete) and space.start == expected.start and space.n > expected.n:
        found.append(f"actions has {space.n} choices, {episodes.env_id} {expected.n}")
    elif isinstance(expected, gym.spaces.Discrete) and space != expected:
        found.append(f"actions is {describe_space(space)}, {episodes.env_id}'s are {describe_space(expected)}")
    return found


def print_report(episodes: Episodes, source: str, console: Console | None = None) -> bool:
    """Print what a dataset holds and what is wrong with it. Return whether it is fit."""
    console = console or Console(highlight=False)
    found = problems(episodes)

    facts = {"dataset": source}
    if not inconsistencies(episodes):
        # The statistics of NaN are NaN without a warning; the last line says where they are.
        with np.errstate(all="ignore"):
            facts |= _facts(episodes)

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for label, value in facts.items():
        table.add_row(label, Text(value))
    console.print(table)
    for remark in remarks(episodes):
        console.print(Text(f"note: {remark}", style="yellow"), soft_wrap=True)

    verdict = Text("can be trained on: yes", style="green")
    if found:
        verdict = Text(f"can be trained on: no: {'; '.join(found)}", style="red")
    console.print(verdict, soft_wrap=True)
    return not found


def _facts(episodes: Episodes) -> dict[str, str]:
    """Return label → value for episodes whose arrays fit each other."""
    # How the episodes ended.
    ended = int(episodes.terminated.sum())
    cut = int(episodes.truncated.sum())
    unfinished = len(episodes) - ended - cut

    env = "none named"
    if episodes.env_id:
        state = "registered" if is_registered(episodes.env_id) else "not registered here"
        why = why_unknown(episodes.env_id, episodes.env_kwargs)
        if why and state == "registered":
            state = f"no evaluation: {why}"
        env = f"{episodes.env_id} ({state})"
        if episodes.env_kwargs:
            env += f" with {in_words(episodes.env_kwargs)}"
        if episodes.env_doubt:
            env += f" with {episodes.env_doubt}, which cannot be taken from a file: evaluation.env_kwargs must say how"

    if episodes.parts is not None:
        width = parts_in_words(episodes.parts)
    else:
        width = f"{episodes.observation_dim} wide"
        constant = np.flatnonzero(np.ptp(episodes.observations, axis=0) == 0)
        if len(constant):
            width += f", constant: {_list(constant)}"

    # What they earned, also on the scale from the random policy's return to the expert's.
    returns = episodes.returns
    reference = episodes.reference_returns
    score = "no reference returns, so no score"
    origin = "none"
    if reference:
        mean = normalized_score(float(returns.mean()), reference)
        best = normalized_score(float(returns.max()), reference)
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
        "actions": f"{describe_space(episodes.action_space)}, {_use_of_actions(episodes)}",
        "after the end": _final(episodes),
    }


def _final(episodes: Episodes) -> str:
    if episodes.final_observations is None:
        return "no final observations"
    known = int(np.isfinite(episodes.final_observations).all(axis=1).sum())
    return f"final observation known for {known:,} of {len(episodes):,} episodes"


def _use_of_actions(episodes: Episodes) -> str:
    """Say how often each discrete action was chosen, or a continuous one was at a bound."""
    space = episodes.action_space
    actions = episodes.actions
    if isinstance(space, gym.spaces.Discrete):
        n = int(space.n)
        chosen = np.zeros(n, np.int64)
        for part in read(actions):
            chosen += np.bincount(np.clip(part, 0, n - 1), minlength=n)
        text = "chosen " + " / ".join(f"{share:.1%}" for share in (chosen / len(actions))[:10])
        if n > 10:
            text += " …"
        return text

    at_bound = 0
    for part in read(actions):
        at_bound += int(((part <= space.low) | (part >= space.high)).sum())
    return f"{at_bound / max(1, actions.size):.1%} of the components at a bound"


def _quantiles(values: np.ndarray) -> str:
    labels = ("mean", "min", "10 %", "median", "90 %", "max")
    levels = [values.mean(), *np.quantile(values, [0, 0.1, 0.5, 0.9, 1])]
    found = []
    for label, level in zip(labels, levels, strict=True):
        number = f"{level:.0f}" if abs(level) >= 1000 else f"{level:.4g}"
        found.append(f"{label} {number}")
    return ", ".join(found)


def describe_space(space: gym.Space) -> str:
    """Describe a space on one line, with the outermost bounds of a Box."""
    if isinstance(space, gym.spaces.Discrete):
        return f"Discrete({space.n}, start={space.start})" if space.start else f"Discrete({space.n})"
    if not isinstance(space, gym.spaces.Box):
        return one_line(space)
    low = space.low.astype(np.float64).min(initial=np.inf)  # of integers none is infinite
    high = space.high.astype(np.float64).max(initial=-np.inf)
    return f"Box({low:.4g}, {high:.4g}, {_width(space)} wide)"


def _width(space: gym.Space) -> int:
    return int(np.prod(space.shape or ()))


def _list(indices: np.ndarray) -> str:
    """List the first 20 of these numbers, and count the others."""
    text = ", ".join(map(str, indices[:20]))
    if len(indices) > 20:
        text += f" … ({len(indices)})"
    return text
