"""What RecurrentPPO's next rollout depends on beside its weights: environments, memories and random numbers."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch

from agents.plain import join, split
from agents.ppo import RecurrentPPO
from agents.ranks import all_of, all_rows, n_ranks, share
from policies.backbones import map_state

NAME = "rollout"


def pack_rollout(agent: RecurrentPPO, tensors: dict[str, torch.Tensor]) -> Any:
    """The state between two rollouts as JSON, with its numbers in ``tensors``; None: the environments cannot be saved,
    or have not begun."""
    env = agent.env
    if env is None or agent._last_obs is None or not env.has_attr("save_state"):
        return None
    environments = all_of(env.env_method("save_state"))
    if any(state is None for state in environments):
        return None
    normalizer = agent.get_vec_normalize_env()
    value = {
        "environments": environments,
        "observations": _of_all(agent._last_obs),
        "episode_starts": _of_all(agent._last_episode_starts),
        "memory": _of_all(agent._state),
        "returns": _of_all(None if normalizer is None else normalizer.returns),
        "episodes": list(agent.ep_info_buffer or []),
        "random": random_state(agent.device),
    }
    return split(value, NAME, tensors)


def load_rollout(agent: RecurrentPPO, packed: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what ``pack_rollout`` gave, in environments that were made alike.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError, AttributeError: it is of other environments.
    """
    value, env = join(packed, tensors), agent.env
    assert env is not None
    saved, here = len(value["environments"]), env.num_envs * n_ranks()
    if saved != here:
        raise ValueError(f"{saved} environments were saved, not {here}")
    own = share(here)
    env.unwrapped.reset()  # under VecNormalize, whose statistics it would add to
    for i, state in enumerate(value["environments"][own]):
        env.env_method("load_state", state, indices=i)
    normalizer, begun = agent.get_vec_normalize_env(), agent.policy.initial_state(env.num_envs)
    # VecNormalize makes float32 of whole numbers, and leaves the space as it is
    kinds = "" if normalizer is None else "f"
    agent._last_obs = _like(_rows(value["observations"], own), env.observation_space.sample(), env.num_envs, kinds)
    agent._last_episode_starts = _like(value["episode_starts"][own], np.array(True), env.num_envs)
    agent._state = map_state(_same_shape, _rows(value["memory"], own, agent.device), begun)
    if normalizer is not None:
        normalizer.returns = _like(value["returns"][own], np.array(0.0), env.num_envs)
    agent.ep_info_buffer = deque(value["episodes"], maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)
    set_random_state(value["random"])


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that a run may draw from: PyTorch's on the CPU and on ``device``, NumPy's and Python's."""
    version, numbers, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - environments may draw from it
        "python": (version, np.array(numbers), gauss),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what ``random_state`` gave; ValueError, TypeError or RuntimeError where it did not give this."""
    for name, numbers, now in (
        ("NumPy", state["numpy"]["state"]["key"], np.random.get_state(legacy=False)["state"]["key"]),  # noqa: NPY002
        ("Python", state["python"][1], np.array(random.getstate()[1])),
    ):
        if numbers.dtype != now.dtype or numbers.shape != now.shape:
            raise ValueError(f"{numbers.dtype} {numbers.shape} is no state of {name}'s generator")
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _like(value: Any, one: Any, n: int, kinds: str = "") -> Any:
    """The value, which must be ``n`` of what ``one`` is one of, or of another of these kinds of numbers."""
    if isinstance(one, dict):
        return {key: _like(value[key], part, n, kinds) for key, part in one.items()}
    wanted = np.asarray(one)
    if value.shape != (n, *wanted.shape) or value.dtype.kind not in wanted.dtype.kind + kinds:
        raise ValueError(f"{value.dtype} {value.shape} was saved where {wanted.dtype} {(n, *wanted.shape)} belongs")
    return value


def _same_shape(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if part.shape != other.shape or part.dtype != other.dtype:
        raise ValueError(f"a memory of {tuple(part.shape)} was saved where {tuple(other.shape)} belongs")
    return part


def _of_all(value: Any) -> Any:
    """Arrays or tensors [B, …], alone or nested, with the rows of every process: those of the environments in order."""
    if value is None or n_ranks() == 1:
        return value
    if isinstance(value, dict):
        return {key: _of_all(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_of_all(part) for part in value)
    return all_rows(value) if isinstance(value, torch.Tensor) else all_rows(torch.from_numpy(value)).numpy()


def _rows(value: Any, own: slice, device: torch.device | None = None) -> Any:
    """The own rows of what ``_of_all`` gave; tensors on ``device``."""
    if isinstance(value, dict):
        return {key: _rows(part, own) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(part, own, device) for part in value)
    if value is None or isinstance(value, np.ndarray):
        return None if value is None else value[own]
    return value[own].to(device)
