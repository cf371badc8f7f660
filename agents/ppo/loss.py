"""The loss of proximal policy optimisation over whole sequences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.agents.ppo.sequences import Sequences
from unroll.policies.actor_critic import RecurrentActorCriticPolicy


def ppo_loss(
    policy: RecurrentActorCriticPolicy,
    batch: Sequences,
    clip_range: float,
    clip_range_vf: float | None,
    ent_coef: float,
    vf_coef: float,
    weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(A·r, A·clip(r)) - ent_coef·H + vf_coef·(R - V)², r the ratio of the new to the old probability of an action
    (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9), averaged over the steps, and what to log of it.

    ``clip_range_vf``: V is kept this near to the old value, None: V is free. ``ratio_error`` is the greatest |r - 1|,
    0 but for rounding as long as the policy is the one that acted. ``weight`` is that of ``Sequences.minibatches``.
    """
    values, log_probs, entropy = policy.evaluate_sequences(
        batch.observations, batch.actions, batch.state, batch.reset, batch.action_masks
    )
    log_ratio = log_probs - batch.log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    policy_loss = -torch.min(batch.advantages * ratio, batch.advantages * clipped).mean()
    if clip_range_vf is not None:
        values = batch.values + (values - batch.values).clamp(-clip_range_vf, clip_range_vf)
    value_loss = F.mse_loss(values, batch.returns)
    # of a squashed distribution there is no formula: -log π of what was done is 1 sample of it
    entropy_loss = log_probs.mean() if entropy is None else -entropy.mean()
    loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    with torch.no_grad():
        error = (ratio - 1).abs()
        metrics = {
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman's estimator k3
            "clip_fraction": (error > clip_range).float().mean(),
            "ratio_error": error.max(),
            "loss": loss,
        }
        factors = dict.fromkeys(metrics, weight) | {"ratio_error": float(weight > 0)}
        metrics = {name: value * factors[name] for name, value in metrics.items()}
    return loss * weight, metrics


class PPOLoss(nn.Module):
    """``ppo_loss`` of a policy as a module, which DistributedDataParallel takes."""

    def __init__(self, policy: RecurrentActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, batch: Sequences, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return ppo_loss(self.policy, batch, **settings)
