"""Checkpoints of RecurrentPPO: weights, optimizer, VecNormalize's statistics and, where the environments can be saved,
all that the next rollout depends on, as tensors and JSON, with the run's config.

``RecurrentPPO.save`` writes Stable-Baselines3's zip, which holds pickled objects; a run folder holds none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from agents.checkpoint import optimizer_tensors, write_checkpoint
from agents.machine import made_here
from agents.ppo import RecurrentPPO
from agents.restoring import check_count, check_tensors, of_checkpoint, read_agent, restore
from agents.rollout_state import load_rollout, pack_rollout
from agents.update import TrainingError

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
