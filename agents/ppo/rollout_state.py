"""What RecurrentPPO's next rollout depends on beside its weights: environments, memories and random numbers."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from unroll.agents.common.distributed import world
from unroll.agents.common.values import join, split
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.envs.gymnasium_vector import GymnasiumVector
from unroll.envs.tensor import tensor_vector
from unroll.policies.backbones import map_state

NAME = "rollout"


def pack_rollout(agent: RecurrentPPO, tensors: dict[str, torch.Tensor]) -> Any:
    """The state between two rollouts as JSON, with its numbers in ``tensors``.

    Of environments that cannot be saved, or have not begun, it is the returns and successes of finished episodes, from
    which means are logged.
    """
    value: dict[str, Any] = {
        "episodes": list(agent.ep_info_buffer or []),
        "successes": [float(success) for success in agent.ep_success_buffer or []],
    }
    env = agent.env
    environments = None
    if env is not None and agent._last_obs is not None and agent._state is not None:
        environments = _save_environments(env)
    if environments is not None:
        normalizer = agent.get_vec_normalize_env()
        value |= {
            "environments": environments,
            "observations": _of_all(agent._last_obs),
            "episode_starts": _of_all(agent._last_episode_starts),
            "memory": _of_all(agent._state),
            "returns": _of_all(None if normalizer is None else normalizer.returns),
            "random": random_state(agent.device),
        }
        if agent.anchor is not None:
            value["anchor"] = _of_all(agent.anchor.memory)
    return split(value, NAME, tensors)


def load_rollout(agent: RecurrentPPO, packed: Any, tensors: dict[str, torch.Tensor]) -> bool:
    """Put back what ``pack_rollout`` gave, in environments that were made alike.

    False: they could not be saved, so that new episodes begin.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError, AttributeError: it is of other environments.
    """
    value = {} if packed is None else join(packed, tensors)  # checkpoints of before may have nothing
    agent.ep_info_buffer = deque(value.get("episodes", []), maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(value.get("successes", []), maxlen=agent._stats_window_size)
    if "environments" not in value:
        agent._last_obs = None
        return False
    env = agent.env
    assert env is not None
    own = world.share(env.num_envs * world.size)
    _load_environments(env, value["environments"])

    # What was seen last. VecNormalize makes float32 of whole numbers, and leaves the space as it is.
    normalizer = agent.get_vec_normalize_env()
    kinds = "" if normalizer is None else "f"
    observations = _rows(value["observations"], own)
    agent._last_obs = check_batch(observations, env.observation_space.sample(), env.num_envs, kinds)
    agent._last_episode_starts = check_batch(value["episode_starts"][own], np.array(True), env.num_envs)

    # What is remembered of it.
    begun = agent.policy.initial_state(env.num_envs)
    agent._state = map_state(_same_shape, _rows(value["memory"], own, agent.device), begun)
    if agent.anchor is not None and value.get("anchor") is not None:
        agent.anchor.memory = map_state(_same_shape, _rows(value["anchor"], own, agent.device), begun)

    # Running sums, and the next random numbers.
    if normalizer is not None:
        normalizer.returns = check_batch(value["returns"][own], np.array(0.0), env.num_envs)
    set_random_state(value["random"], agent.device)
    return True


def _save_environments(env: VecEnv) -> Any:
    """The states of the environments of every process, in a list; of environments of tensors it is one dict.

    None: they cannot be saved.
    """
    tensors = tensor_vector(env)
    if tensors is not None:
        return tensors.save_state()
    if isinstance(env.unwrapped, GymnasiumVector) or not env.has_attr("save_state"):
        return None
    states = world.all_of(env.env_method("save_state"))
    return None if any(state is None for state in states) else states


def _load_environments(env: VecEnv, saved: Any) -> None:
    """Put back what ``_save_environments`` gave.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError, AttributeError: it is of other environments.
    """
    # They are reset below VecNormalize, whose statistics a reset would add to.
    tensors = tensor_vector(env)
    if (tensors is not None) != isinstance(saved, dict):
        raise ValueError("vector is tensor in one of the run and its checkpoint, and not in the other")
    if tensors is not None:
        tensors.reset()
        tensors.load_state(saved)
        return
    here = env.num_envs * world.size
    if len(saved) != here:
        raise ValueError(f"{len(saved)} environments were saved, not {here}")
    env.unwrapped.reset()
    for i, state in enumerate(saved[world.share(here)]):
        env.env_method("load_state", state, indices=i)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a run may draw from: PyTorch's (CPU and ``device``), NumPy's and Python's."""
    version, numbers, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - environments may draw from it
        "python": (version, np.array(numbers), gauss),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what ``random_state`` gave for an agent on ``device``.

    Raises:
        ValueError, TypeError, RuntimeError: ``random_state`` cannot have given this.
    """
    key = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    _check_generator("NumPy", state["numpy"]["state"]["key"], key)
    _check_generator("Python", state["python"][1], np.array(random.getstate()[1]))

    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _check_generator(name: str, numbers: np.ndarray, now: np.ndarray) -> None:
    if numbers.dtype != now.dtype or numbers.shape != now.shape:
        raise ValueError(f"{numbers.dtype} {numbers.shape} is no state of {name}'s generator")


def check_batch(value: Any, example: Any, n: int, kinds: str = "") -> Any:
    """Check that ``value`` is a batch of ``n`` rows like ``example``, and return it.

    Dtypes of the kinds in ``kinds`` (NumPy's letters) also pass.
    """
    if isinstance(example, dict):
        return {key: check_batch(value[key], part, n, kinds) for key, part in example.items()}
    wanted = np.asarray(example)
    if value.shape != (n, *wanted.shape) or value.dtype.kind not in wanted.dtype.kind + kinds:
        raise ValueError(f"{value.dtype} {value.shape} was saved where {wanted.dtype} {(n, *wanted.shape)} belongs")
    return value


def _same_shape(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if part.shape != other.shape or part.dtype != other.dtype:
        raise ValueError(f"a memory of {tuple(part.shape)} was saved where {tuple(other.shape)} belongs")
    return part


def _of_all(value: Any) -> Any:
    """Arrays or tensors [B, …], alone or nested, with the rows of every process in the order of the environments."""
    if value is None or world.size == 1:
        return value
    if isinstance(value, dict):
        return {key: _of_all(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_of_all(part) for part in value)
    if isinstance(value, torch.Tensor):
        return world.all_rows(value)
    return world.all_rows(torch.from_numpy(value)).numpy()


def _rows(value: Any, own: slice, device: torch.device | None = None) -> Any:
    """The rows of this process among those that ``_of_all`` gave; tensors on ``device``."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _rows(part, own) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(part, own, device) for part in value)
    if isinstance(value, np.ndarray):
        return value[own]
    return value[own].to(device)
