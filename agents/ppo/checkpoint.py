"""Checkpoints of RecurrentPPO in a run folder: weights, optimizer, statistics, and the state of the rollouts.

They are tensors and JSON, with the run's config. ``RecurrentPPO.save`` writes Stable-Baselines3's zip, which holds
pickled objects; a run folder holds none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from unroll.agents.common.checkpoint import optimizer_tensors, write_checkpoint
from unroll.agents.common.machine import made_here
from unroll.agents.common.restoring import check_count, check_tensors, of_checkpoint, of_now, read_agent, restore
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.agents.ppo.anchor import SETTINGS, Anchor
from unroll.agents.ppo.rollout_state import load_rollout, pack_rollout
from unroll.errors import TrainingError
from unroll.policies.actor_critic import RecurrentActorCriticPolicy

AGENT = "RecurrentPPO"
FORMAT = 2  # 1: the backbone's blocks had a norm and a skip, unless told otherwise
REFERENCE = "anchor."  # begins the names of the pretrained policy's weights
STATISTICS = ("mean", "var", "count")  # of a RunningMeanStd

Packed = tuple[dict[str, torch.Tensor], dict[str, Any]]  # the tensors and the state of a checkpoint


def save_ppo(agent: RecurrentPPO, path: str | Path, config: dict[str, Any]) -> None:
    """Write a checkpoint folder; ``config`` is what rebuilds the environments and the agent.

    Raises:
        TrainingError: a weight is not finite; nothing is written.
    """
    write_ppo(path, *pack_ppo(agent, config))


def write_ppo(path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write the checkpoint that ``pack_ppo`` made; errors as in ``save_ppo``."""
    for name, value in tensors.items():
        if name.startswith("policy.") and not bool(torch.isfinite(value).all()):
            raise TrainingError(f"a weight is not finite at step {state['num_timesteps']}, so {path} was not written")
    write_checkpoint(path, tensors, state)


def pack_ppo(agent: RecurrentPPO, config: dict[str, Any]) -> Packed:
    """Copy what a checkpoint holds."""
    tensors = {f"policy.{name}": value for name, value in policy_tensors(agent.policy).items()}
    tensors |= optimizer_tensors(agent.policy.optimizer)
    tensors = {name: value.detach().clone() for name, value in tensors.items()}
    tensors |= statistics_tensors(agent)
    state = {
        "format": FORMAT,
        "agent": AGENT,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "largest_deviation": agent.largest_deviation,
        "config": config,
        "rollout": pack_rollout(agent, tensors),
        **made_here(agent.device),
    }
    if agent.anchor is not None:
        state["anchor"] = agent.anchor.settings()
        tensors |= _reference_tensors(agent.anchor)
    return tensors, state


def read_ppo(path: str | Path) -> Packed:
    """Read the tensors and the state of a checkpoint of RecurrentPPO.

    Raises:
        CheckpointError: it is damaged, or of another agent.
    """
    tensors, state = read_agent(path, AGENT, FORMAT)
    with of_checkpoint(path):
        check_count(state, "num_timesteps", "n_updates")
        if not 0 <= float(state.get("largest_deviation", 0.0)) < math.inf:  # early checkpoints of this format lack it
            raise ValueError(f"largest_deviation is {state['largest_deviation']}")
    return tensors, state


def restore_ppo(agent: RecurrentPPO, path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Give an agent that was built from the checkpoint's config what ``read_ppo`` found at ``path``.

    Raises:
        CheckpointError: it is of another model.
    """
    with of_checkpoint(path):
        statistics = {name: v for name, v in tensors.items() if name.startswith("normalizer.")}
        check_tensors(statistics, statistics_tensors(agent), "statistics")
        restore(agent.policy, agent.policy.optimizer, policy_tensors(agent.policy), tensors)
        restore_statistics(agent, tensors)
        agent.num_timesteps = state["num_timesteps"]
        agent._n_updates = state["n_updates"]
        agent.largest_deviation = float(state.get("largest_deviation", 0.0))


def resume_ppo(agent: RecurrentPPO, path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> bool:
    """Restore the agent, and go on in the episodes that were being played.

    False: the environments could not be saved, so that new episodes begin.

    Raises:
        CheckpointError: it is of another model or of other environments.
    """
    restore_ppo(agent, path, tensors, state)
    with of_checkpoint(path):
        agent.anchor = _read_anchor(agent.policy, tensors, state.get("anchor"))
        return load_rollout(agent, state.get("rollout"), tensors)


def _read_anchor(
    policy: RecurrentActorCriticPolicy, tensors: dict[str, torch.Tensor], settings: dict[str, Any] | None
) -> Anchor | None:
    """The anchor of a run that was pretrained not long before; None for others, and for early checkpoints."""
    if settings is None:
        return None
    check_count(settings, "critic_first", "kl_steps", "steps")
    if not 0 <= float(settings["kl_coef"]) < math.inf:
        raise ValueError(f"kl_coef is {settings['kl_coef']}")
    anchor = Anchor(policy, **{name: settings[name] for name in SETTINGS})
    wanted = _reference_tensors(anchor)
    found = {name: v for name, v in tensors.items() if name.startswith(REFERENCE)}
    if anchor.reference is not None:
        found = of_now(anchor.reference, found, REFERENCE)
    check_tensors(found, wanted, "anchor")
    for name, value in wanted.items():
        value.copy_(found[name])
    return anchor


def _reference_tensors(anchor: Anchor) -> dict[str, torch.Tensor]:
    """The weights of the pretrained policy, as long as it is read. They never change, so they are no copies."""
    if anchor.reference is None:
        return {}
    return {REFERENCE + name: value for name, value in policy_tensors(anchor.reference).items()}


def policy_tensors(policy: RecurrentActorCriticPolicy) -> dict[str, torch.Tensor]:
    """Return the policy's tensors, each under the first of its names.

    A features extractor that actor and critic share has three.
    """
    names: dict[tuple[int, torch.Size], str] = {}
    weights = {}
    for name, value in policy.state_dict().items():
        if names.setdefault((value.data_ptr(), value.shape), name) == name:
            weights[name] = value
    return weights


def statistics_tensors(agent: RecurrentPPO) -> dict[str, torch.Tensor]:
    """Return VecNormalize's statistics, if there are any, by their names in a checkpoint."""
    tensors = {}
    for name, running in _statistics(agent.get_vec_normalize_env()).items():
        for key in STATISTICS:
            tensors[f"normalizer.{name}.{key}"] = torch.as_tensor(getattr(running, key), dtype=torch.float64)
    return tensors


def restore_statistics(agent: RecurrentPPO, tensors: dict[str, torch.Tensor]) -> None:
    """Give VecNormalize, if there is one, what ``statistics_tensors`` gave."""
    for name, running in _statistics(agent.get_vec_normalize_env()).items():
        running.mean = tensors[f"normalizer.{name}.mean"].numpy()
        running.var = tensors[f"normalizer.{name}.var"].numpy()
        running.count = float(tensors[f"normalizer.{name}.count"].numpy())


def _statistics(normalizer: VecNormalize | None) -> dict[str, RunningMeanStd]:
    """The running statistics by name: of each observation, and of the discounted return."""
    if normalizer is None:
        return {}
    statistics: dict[str, RunningMeanStd] = {"return": normalizer.ret_rms}
    if not normalizer.norm_obs:
        return statistics
    if isinstance(normalizer.obs_rms, dict):
        for key, running in normalizer.obs_rms.items():
            statistics[f"observation.{key}"] = running
    else:
        statistics["observation"] = normalizer.obs_rms
    return statistics
