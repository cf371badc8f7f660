"""Checkpoints of RecurrentPPO: weights, optimizer, VecNormalize's statistics and, where the environments can be saved,
all that the next rollout depends on, as tensors and JSON, with the run's config.

``RecurrentPPO.save`` writes Stable-Baselines3's zip, which holds pickled objects; a run folder holds none.
"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from unroll.agents.common.checkpoint import optimizer_tensors, write_checkpoint
from unroll.agents.common.distributed import all_of, all_rows, n_ranks, share
from unroll.agents.common.machine import made_here
from unroll.agents.common.restoring import check_count, check_tensors, of_checkpoint, read_agent, restore
from unroll.agents.common.values import join, split
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.errors import TrainingError
from unroll.policies.backbones import map_state

AGENT, FORMAT = "RecurrentPPO", 1


def save_ppo(agent: RecurrentPPO, path: str | Path, config: dict[str, Any]) -> None:
    """Write a checkpoint folder; ``config`` is what rebuilds the environments and the agent.

    Raises:
        TrainingError: a weight is not finite; nothing is written.
    """
    write_ppo(path, *pack_ppo(agent, config))


def write_ppo(path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """``save_ppo`` of what ``pack_ppo`` gave."""
    if not all(bool(torch.isfinite(value).all()) for name, value in tensors.items() if name.startswith("policy.")):
        raise TrainingError(f"a weight is not finite at step {state['num_timesteps']}, so {path} was not written")
    write_checkpoint(path, tensors, state)


def pack_ppo(agent: RecurrentPPO, config: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What a checkpoint holds: tensors, copied, and state."""
    tensors = {f"policy.{name}": value for name, value in _weights(agent).items()}
    tensors |= optimizer_tensors(agent.policy.optimizer)
    tensors = {name: value.detach().clone() for name, value in tensors.items()}
    tensors |= _statistics_tensors(agent)
    state = {
        "format": FORMAT,
        "agent": AGENT,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "config": config,
        "rollout": pack_rollout(agent, tensors),
        **made_here(),
    }
    return tensors, state


def read_ppo(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint of RecurrentPPO.

    Raises:
        CheckpointError: it is damaged, or of another agent.
    """
    tensors, state = read_agent(path, AGENT, FORMAT)
    with of_checkpoint(path):
        check_count(state, "num_timesteps", "n_updates")
    return tensors, state


def restore_ppo(agent: RecurrentPPO, path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Give an agent that was built from the checkpoint's config what ``read_ppo`` found at ``path``.

    Raises:
        CheckpointError: it is of another model.
    """
    with of_checkpoint(path):
        statistics = {name: v for name, v in tensors.items() if name.startswith("normalizer.")}
        check_tensors(statistics, _statistics_tensors(agent), "statistics")
        restore(agent.policy, agent.policy.optimizer, _weights(agent), tensors)
        for name, running in _statistics(agent.get_vec_normalize_env()).items():
            mean, var, count = (tensors[f"normalizer.{name}.{key}"].numpy() for key in ("mean", "var", "count"))
            running.mean, running.var, running.count = mean, var, float(count)
        agent.num_timesteps, agent._n_updates = state["num_timesteps"], state["n_updates"]


def resume_ppo(agent: RecurrentPPO, path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> bool:
    """``restore_ppo``, and go on in the episodes that were being played. False: they could not be saved, so that new
    ones begin.

    Raises:
        CheckpointError: it is of another model or of other environments.
    """
    restore_ppo(agent, path, tensors, state)
    if state.get("rollout") is None:
        agent._last_obs = None
        return False
    with of_checkpoint(path):
        load_rollout(agent, state["rollout"], tensors)
    return True


def _weights(agent: RecurrentPPO) -> dict[str, torch.Tensor]:
    """The policy's state, each tensor under the first of its names: a features extractor that actor and critic share
    has three."""
    first: dict[tuple[int, torch.Size], str] = {}
    state = agent.policy.state_dict()
    return {name: v for name, v in state.items() if first.setdefault((v.data_ptr(), v.shape), name) == name}


def _statistics_tensors(agent: RecurrentPPO) -> dict[str, torch.Tensor]:
    return {
        f"normalizer.{name}.{key}": torch.as_tensor(getattr(running, key), dtype=torch.float64)
        for name, running in _statistics(agent.get_vec_normalize_env()).items()
        for key in ("mean", "var", "count")
    }


def _statistics(normalizer: VecNormalize | None) -> dict[str, RunningMeanStd]:
    """The running statistics by name: of each observation, and of the discounted return."""
    if normalizer is None:
        return {}
    statistics: dict[str, RunningMeanStd] = {"return": normalizer.ret_rms}
    if normalizer.norm_obs:
        observed = normalizer.obs_rms
        if isinstance(observed, dict):
            statistics |= {f"observation.{key}": value for key, value in observed.items()}
        else:
            statistics["observation"] = observed
    return statistics


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
