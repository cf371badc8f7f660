"""Join several datasets of one space, of which each may be drawn as often as a weight says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from unroll.envs.datasets.conversion import MAX_DISCRETE
from unroll.envs.datasets.doctor import describe_space, inconsistencies
from unroll.envs.datasets.episodes import Episodes, is_mapped
from unroll.envs.datasets.images import parts_in_words
from unroll.envs.datasets.registered import in_words
from unroll.errors import DatasetError, one_line

MOST_NAMES = 3  # datasets that are named in the name of all of them


def join(several: Sequence[Episodes], sources: Sequence[str], weights: Sequence[float] | None = None) -> Episodes:
    """Put the episodes of several datasets together, in their order.

    The environment is that of the first one. Where others were recorded elsewhere, a remark says so. Action spaces that
    were guessed are those of the others, or the smallest one that holds the actions of all.

    Args:
        several: the datasets.
        sources: their names, for errors and remarks.
        weights: how often each is drawn, relative to the others. None: every step as often as any other.

    Raises:
        DatasetError: two datasets observe or act in different spaces, or one is too large for RAM, or the weights
            are none.
    """
    for episodes, source in zip(several, sources, strict=True):
        faults = inconsistencies(episodes)
        if faults:
            raise DatasetError(f"{source}: {faults[0]}")
    guessed = all(episodes.guessed for episodes in several)
    remarks = _remarks(several, sources)
    united = _with_one_space(several)
    first = united[0]
    if any(one is not other for one, other in zip(united, several, strict=True)):
        remarks.append(f"actions whose space nothing names are taken as those of {describe_space(first.action_space)}")
    several = united
    for other, source in zip(several[1:], sources[1:], strict=True):
        _check_same_space(first, other, sources[0], source)
    for episodes, source in zip(several, sources, strict=True):
        if is_mapped(episodes.observations):
            raise DatasetError(
                f"{source} is large compared to this machine's memory, and only datasets that fit into it can be joined"
            )
    odds = None if weights is None else odds_of(weights, len(several))

    finals = [episodes.final_observations for episodes in several]
    known = [final for final in finals if final is not None]
    # A file that names no environment says nothing against the score of the first one.
    named = [episodes for episodes in several if episodes.env_id or episodes.reference_returns]
    same_reference = len({episodes.reference_returns for episodes in named}) == 1
    return dataclasses.replace(
        first,
        observations=np.concatenate([episodes.observations for episodes in several]),
        actions=np.concatenate([episodes.actions for episodes in several]),
        rewards=np.concatenate([episodes.rewards for episodes in several]),
        lengths=np.concatenate([episodes.lengths for episodes in several]),
        terminated=np.concatenate([episodes.terminated for episodes in several]),
        truncated=np.concatenate([episodes.truncated for episodes in several]),
        final_observations=np.concatenate(known) if len(known) == len(several) else None,
        name=_name(several),
        reference_returns=first.reference_returns if same_reference else None,
        reference_name=first.reference_name if same_reference else None,
        known_statistics=None,
        remarks=tuple(remarks),
        guessed=guessed,
        origin=np.repeat(np.arange(len(several)), [len(episodes) for episodes in several]),
        odds=odds,
    )


def what_each_brings(
    several: Sequence[Episodes], sources: Sequence[str], weights: Sequence[float] | None = None
) -> list[str]:
    """Say in a line for each dataset what it has, what its episodes return, and how often it is drawn."""
    steps = sum(episodes.n_steps for episodes in several)
    lines = []
    for i, (episodes, source) in enumerate(zip(several, sources, strict=True)):
        share = f"{episodes.n_steps / steps:.0%} of all steps"
        if weights is not None:
            share = f"{weights[i] / sum(weights):.0%} of what is drawn"
        size = f"{len(episodes):,} episodes, {episodes.n_steps:,} steps, {share}"
        returns = episodes.returns
        lines.append(f"{source}: {size}; return {returns.mean():.4g} on average, {returns.max():.4g} at best")
    return lines


def _with_one_space(several: Sequence[Episodes]) -> list[Episodes]:
    """Return the datasets with one action space, as far as those are guessed from their actions that differ."""
    named = [episodes.action_space for episodes in several if not episodes.guessed]
    space = named[0] if named else _widest([episodes.action_space for episodes in several])
    if space is None:
        return list(several)
    united = [episodes.counted_as(space) if episodes.guessed else episodes for episodes in several]
    # Choices beside continuous actions are refused: they may be those of another task.
    have_choices = [isinstance(episodes.action_space, gym.spaces.Discrete) for episodes in several]
    if any(have_choices) and not all(isinstance(episodes.action_space, gym.spaces.Discrete) for episodes in united):
        return list(several)
    return united


def _widest(several: Sequence[gym.spaces.Box | gym.spaces.Discrete]) -> gym.spaces.Box | gym.spaces.Discrete | None:
    """The smallest space that holds several; None where Boxes differ in shape. Floats beside choices are some, too."""
    boxes = [space for space in several if isinstance(space, gym.spaces.Box)]
    choices = [space for space in several if isinstance(space, gym.spaces.Discrete)]
    if len({box.shape for box in boxes}) > 1:
        return None
    if not choices:
        low = np.min([box.low for box in boxes], axis=0)
        return gym.spaces.Box(low, np.max([box.high for box in boxes], axis=0), dtype=np.float32)
    seen = [int(space.n) for space in choices] + [int(box.high.max()) + 1 for box in boxes]
    return gym.spaces.Discrete(min(max(seen), MAX_DISCRETE))


def _check_same_space(first: Episodes, other: Episodes, first_source: str, source: str) -> None:
    """Raise DatasetError, with both names and both spaces, unless two datasets observe and act in the same ones."""
    for what, one, two in (
        ("observes", _observed(first), _observed(other)),
        ("takes actions of", _acted(first), _acted(other)),
    ):
        if one != two:
            raise DatasetError(f"{first_source} {what} {one}, {source} {what} {two}: these cannot be joined")


def _observed(episodes: Episodes) -> str:
    return parts_in_words(episodes.parts) if episodes.parts else f"{episodes.observation_dim} numbers"


def _acted(episodes: Episodes) -> str:
    space = episodes.action_space
    if isinstance(space, gym.spaces.Box):
        # Bounds in full: two boxes of the same width may differ in any of them.
        low = np.array2string(space.low, threshold=6)
        high = np.array2string(space.high, threshold=6)
        return f"{space.low.size} numbers from {one_line(low)} to {one_line(high)}"
    return one_line(space)


def odds_of(weights: Sequence[float], n: int) -> tuple[float, ...]:
    """Return the weights as probabilities.

    Raises:
        DatasetError: there are more or fewer than datasets, or one is not above 0.
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (n,) or not (np.isfinite(values).all() and (values > 0).all()):
        needed = "1 dataset needs 1 number" if n == 1 else f"{n} datasets need {n} numbers"
        raise DatasetError(f"weights {weights}: {needed} above 0")
    return tuple((values / values.sum()).tolist())


def _name(several: Sequence[Episodes]) -> str:
    """Name the whole after its parts, as a run's folder can be named."""
    names = [episodes.name.replace("/", "-") for episodes in several]
    if len(names) > MOST_NAMES:
        return f"{names[0]}+{len(names) - 1}-more"
    return "+".join(names)


def _remarks(several: Sequence[Episodes], sources: Sequence[str]) -> list[str]:
    """Repeat what the loader said of each, and say where they were recorded if that was not one environment."""
    found = []
    for episodes, source in zip(several, sources, strict=True):
        found += [f"{source}: {remark}" for remark in episodes.remarks]
    places = different_places(several, sources)
    return [*found, places] if places else found


def different_places(several: Sequence[Episodes], sources: Sequence[str]) -> str | None:
    """Say in which environments the datasets were recorded; None where that was one."""
    places = []
    for episodes in several:
        place = episodes.env_id or "no environment that it names"
        made_with = [part for part in (in_words(episodes.env_kwargs), episodes.env_doubt) if part]
        if made_with:
            place += f" ({', '.join(made_with)})"
        places.append(place)
    if len(set(places)) == 1:
        return None
    listed = ", ".join(f"{source} in {place}" for source, place in zip(sources, places, strict=True))
    return f"recorded in different environments: {listed}; the first one counts"
