"""The order in which the parts of an observation stand side by side in its row.

Gymnasium flattens a Dict in the order of its keys, and that order depends on how the space was
written: a plain dict is sorted; keywords, an OrderedDict and a list of pairs are not. Minari's
reader sorts all of them. A row of the data must have the environment's order, or a policy is shown
one number in the place of another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym

# For a Dict or a Tuple its parts by name, in order; for any other space its kind and width.
Layout = dict[str, Any] | str
GOAL = ("observation", "desired_goal")


def kept(keys: Iterable[str], outermost: bool = True) -> tuple[str, ...]:
    """Return the keys of a Dict that are put into the row, in order.

    Of a goal environment (Gymnasium-Robotics) they are observation and desired_goal: the goal that
    was achieved is part of what is observed. A Dict with any other key is no such environment and
    is shown whole, and so is a Dict within another one.
    """
    keys = tuple(keys)
    if outermost and set(GOAL) <= set(keys) <= {*GOAL, "achieved_goal"}:
        return GOAL
    return keys


def layout(space: gym.Space, outermost: bool = True) -> Layout:
    """Return the order in which Gymnasium flattens a space."""
    if isinstance(space, gym.spaces.Dict):
        return {key: layout(space[key], False) for key in kept(space.spaces, outermost)}
    if isinstance(space, gym.spaces.Tuple):
        return {str(i): layout(part, False) for i, part in enumerate(space.spaces)}
    if not space.is_np_flattenable:
        return f"0 {type(space).__name__}"
    one_hot = isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
    kind = "one-hot" if one_hot else "numbers"
    return f"{gym.spaces.flatdim(space)} {kind}"


def arrange(space: gym.Space, order: Layout) -> gym.Space:
    """Return the space with the parts, and in the order, of a layout that has the same parts."""
    if not isinstance(order, dict):
        return space
    if isinstance(space, gym.spaces.Tuple):
        return gym.spaces.Tuple([arrange(space[int(i)], part) for i, part in order.items()])
    assert isinstance(space, gym.spaces.Dict)
    return gym.spaces.Dict([(key, arrange(space[key], part)) for key, part in order.items()])


def declared(space: gym.Space, written: dict[str, Any], outermost: bool = True) -> Layout:
    """Return the layout of a space in the order in which Minari's metadata list its parts.

    Minari writes the keys in the order of the environment's space, and forgets it when it reads.
    """
    if isinstance(space, gym.spaces.Dict):
        parts = written["subspaces"]
        own = [key for key in parts if key in space.spaces]  # those of text are left out
        return {key: declared(space[key], parts[key], False) for key in kept(own, outermost)}
    if isinstance(space, gym.spaces.Tuple):
        pairs = zip(space.spaces, written["subspaces"], strict=True)
        return {str(i): declared(part, text, False) for i, (part, text) in enumerate(pairs)}
    return layout(space, outermost)


def same_parts(a: Layout, b: Layout) -> bool:
    """Say whether two layouts have the same parts, in whatever order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_parts(a[key], b[key]) for key in a)
    return a == b


def flat_width(order: Layout) -> int:
    """Count the numbers of the row."""
    if isinstance(order, dict):
        return sum(map(flat_width, order.values()))
    return int(order.split()[0])


def has_choice(order: Layout) -> bool:
    """Say whether the parts could stand in another order; those of a goal environment cannot."""
    if not isinstance(order, dict):
        return False
    named = len(order) > 1 and tuple(order) != GOAL and "0" not in order
    return named or any(map(has_choice, order.values()))


def in_words(order: Layout) -> str:
    """List the names of the parts, those of a part that has some in brackets."""
    listed = []
    for key, part in order.items() if isinstance(order, dict) else ():
        inner = in_words(part)
        listed.append(f"{key} ({inner})" if inner else key)
    return ", ".join(listed)
