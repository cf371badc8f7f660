"""What Minari's metadata say of the environment: its id, its arguments, its step limit, its observation.

They hold Gymnasium's specification of the environment that was played, and may hold another one to
evaluate in. Only an id and plain values are taken of it. Nothing that it names is imported.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gymnasium as gym

from unroll.envs.datasets.images import Parts, beside_texts, parts_in_words, parts_of
from unroll.envs.datasets.order import Layout, arrange, declared, flat_width, has_choice, layout, same_parts
from unroll.envs.datasets.order import in_words as order_in_words
from unroll.envs.datasets.registered import NOT_OURS, Known, in_words, is_registered, known_env, not_plain

# Wrappers of Gymnasium that leave the task as it is: they watch it, or flatten as we do.
HARMLESS = ("FlattenObservation", "HumanRendering", "RecordEpisodeStatistics", "RecordVideo")


# Unless it is the environment's, the order of an observation's parts is a guess, which is told.
UNCHECKED = "the parts of an observation are in the order of its metadata"


class Said(NamedTuple):
    """An environment as a file describes it."""

    env_id: str | None
    env_kwargs: dict[str, Any]
    doubt: str | None  # what the environment has beyond that, and cannot be taken from a file

    def in_words(self) -> str:
        """Name the environment and what it is made with."""
        listed = [part for part in (in_words(self.env_kwargs), self.doubt) if part]
        return f"{self.env_id} ({', '.join(listed)})" if listed else str(self.env_id)


NOWHERE = Said(None, {}, None)


def said_of_env(metadata: dict[str, Any], name: str = "env_spec") -> Said:
    """Read one of the specifications in Minari's metadata."""
    spec = json.loads(metadata.get(name) or "{}")
    env_id = str(spec.get("id") or "") or None
    if env_id is None:
        return NOWHERE

    given = spec.get("kwargs") or {}
    if isinstance(given, dict):
        given = {key: value for key, value in given.items() if key not in NOT_OURS}
    registered = gym.registry[env_id] if is_registered(env_id) else None

    # What the registered environment has anyway need not be given to it.
    doubts = [f"argument {key}" for key in not_plain(given)]
    env_kwargs: dict[str, Any] = {}
    if not doubts:
        known = _as_json(registered.kwargs) if registered else {}
        env_kwargs = {key: value for key, value in given.items() if key not in known or known[key] != value}
    limit = spec.get("max_episode_steps")
    if limit is not None and not (registered and registered.max_episode_steps == limit):
        if not_plain({"max_episode_steps": limit}):
            doubts.append("argument max_episode_steps")
        else:
            env_kwargs["max_episode_steps"] = limit

    doubts += [f"wrapper {wrapper}" for wrapper in _strange_wrappers(spec, registered)]
    return Said(env_id, env_kwargs, ", ".join(doubts) or None)


def what_is_here(metadata: dict[str, Any]) -> str:
    """Say what decides how a set is read: its environments, and whether they can be made here."""
    found = []
    for said in _candidates(metadata):
        found.append(f"{said} {known_env(said.env_id, said.env_kwargs)}")
    return " ".join(found)


def settle(metadata: dict[str, Any], space: gym.Space) -> tuple[gym.Space, Said, list[str]]:
    """Hold a set's observation against the environments that its metadata name.

    Returns:
        The observation space with its parts in the environment's order, the environment to evaluate
        in, and what is to be said of both. The environment is none where all of them show something
        else: the data were recorded with other options than can be had here.
    """
    order = declared(space, json.loads(metadata["observation_space"]))
    candidates = _candidates(metadata)
    remarks = []
    chosen = NOWHERE
    parts = parts_of(space)
    for said in candidates:
        misfit = _misfit(order, said) if parts is None else _misfit_of_images(parts, said)
        if misfit is None:
            chosen = said
            break
        remarks.append(f"{misfit}, so that is not taken for the set's environment")
    if chosen != candidates[-1] and chosen != NOWHERE:
        remarks.append(f"recorded in {candidates[-1].in_words()}, to be evaluated in {chosen.in_words()}")

    # The parts beside images are found by their names.
    if parts is not None:
        return space, chosen, remarks
    # The environment that is played decides about the order.
    for said in (chosen, *candidates):
        known = known_env(said.env_id, said.env_kwargs)
        if known is not None and same_parts(order, _layout_of(known)):
            return arrange(space, _layout_of(known)), chosen, remarks
    if has_choice(order):
        why = "no environment that can be asked is named"
        if chosen.env_id:
            known = known_env(chosen.env_id, chosen.env_kwargs)
            why = f"{chosen.env_id} shows no parts" if known else f"{chosen.env_id} is not here to be asked"
        remarks.append(f"{UNCHECKED}, {order_in_words(order)}: {why}")
    return arrange(space, order), chosen, remarks


def _layout_of(known: Known) -> Layout:
    """Return the order of the parts that ``make_env`` shows."""
    return layout(beside_texts(known.observation_space)[0])


def _candidates(metadata: dict[str, Any]) -> list[Said]:
    """Return the environment that the metadata name to evaluate in, where they do, and the recorded one."""
    recorded = said_of_env(metadata)
    played = said_of_env(metadata, "eval_env_spec")
    return [recorded] if played in (NOWHERE, recorded) else [played, recorded]


def _misfit(order: Layout, said: Said) -> str | None:
    """Say in what an environment shows other observations than a set holds; None where nothing is known."""
    known = known_env(said.env_id, said.env_kwargs)
    if known is None:
        return None
    own = _layout_of(known)
    if same_parts(order, own):
        return None
    width = flat_width(order)
    if known.width != width:
        return f"{width} observations per step, {said.in_words()} has {known.width}"
    # One of the two may be flat already, and then it has no parts.
    if isinstance(order, dict) and isinstance(own, dict):
        return f"observations of {order_in_words(order)}, {said.in_words()} has {order_in_words(own)}"
    return None


def _misfit_of_images(parts: Parts, said: Said) -> str | None:
    """Say in what an environment shows other images than a set holds; None where nothing is known."""
    known = known_env(said.env_id, said.env_kwargs)
    shown = parts_of(known.observation_space) if known else parts
    if shown == parts:
        return None
    theirs = parts_in_words(shown) if shown else "no images"
    return f"observations of {parts_in_words(parts)}, {said.in_words()} has {theirs}"


def _strange_wrappers(spec: dict[str, Any], registered: gym.envs.registration.EnvSpec | None) -> list[str]:
    """List the wrappers that a specification names beyond those that the id stands for."""
    found = []
    own = []
    if registered:
        for wrapper in registered.additional_wrappers:
            own.append((wrapper.entry_point, _as_json(wrapper.kwargs or {})))
    for named in spec.get("additional_wrappers") or ():
        code = str(named.get("entry_point"))
        harmless = code.startswith("gymnasium.wrappers") and code.rpartition(":")[2] in HARMLESS
        if not harmless and (code, named.get("kwargs") or {}) not in own:
            found.append(str(named.get("name"))[:100])
    return found


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON, where a tuple is a list."""
    return json.loads(json.dumps(values, default=repr))
