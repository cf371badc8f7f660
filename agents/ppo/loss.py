"""The loss of proximal policy optimisation over whole sequences."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.agents.common.machine import products_are_rounded
from unroll.agents.ppo.anchor import divergence
from unroll.agents.ppo.sequences import Sequences
from unroll.policies.actor_critic import RecurrentActorCriticPolicy

log = logging.getLogger(__name__)
LARGEST_ERROR = 1e-4  # of the first ratio; float32 leaves about 1e-6
LARGEST_ERROR_TF32 = 1e-2


class PPOLoss(nn.Module):
    """-min(A·r, A·clip(r)) - ent_coef·H + vf_coef·((R - V) / σ)², averaged over the steps.

    r is the ratio of the new to the old probability of an action (Schulman et al. 2017, arXiv 1707.06347, equations 7
    and 9), σ the size of the returns (see ValueScale). It is a module because DistributedDataParallel takes one.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(
        self,
        batch: Sequences,
        clip_range: float,
        clip_range_vf: float | None,
        ent_coef: float,
        vf_coef: float,
        kl_coef: float = 0.0,
        weight: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, and what to log of it: a metric that is added to the dict is logged by itself.

        The numbers may be tensors of one element, which a CUDA graph can read anew.

        Args:
            clip_range_vf: how far V may move from the old value; None: V is free.
            kl_coef: weight of KL(π_pretrained ‖ π), for a batch that has a reference.
            weight: that of ``Sequences.minibatches``.
        """
        # What the policy says now of what was done, [B, T], by one forward of the backbone over the sequences.
        values, log_probs, entropy = self.policy.evaluate_sequences(
            batch.observations, batch.actions, batch.state, batch.reset, batch.action_masks
        )

        # The clipped surrogate objective (equation 7).
        log_ratio = log_probs - batch.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -batch.real(torch.min(batch.advantages * ratio, batch.advantages * clipped)).mean()

        # The error of the value.
        if clip_range_vf is not None:
            values = batch.values + (values - batch.values).clamp(-clip_range_vf, clip_range_vf)
        value_loss = F.mse_loss(batch.real(values), batch.real(batch.returns))

        # A squashed distribution has no formula for its entropy: -log π of what was done is one sample of it.
        entropy_loss = -batch.real(-log_probs if entropy is None else entropy).mean()

        # Equation 9, with values in the unit of the value network.
        value_weight = vf_coef / self.policy.value_scale.square
        loss = policy_loss + ent_coef * entropy_loss + value_weight * value_loss
        kl = None
        if batch.reference is not None:
            # The policy's distribution is still that of the forward above.
            kl = divergence(batch.reference.flatten(0, 1), self.policy.action_dist)
            kl = batch.real(kl.view(batch.reset.shape)).mean()
            loss = loss + kl_coef * kl
        with torch.no_grad():
            error = (ratio - 1).abs()
            metrics = {
                "policy_gradient_loss": policy_loss,
                "value_loss": value_loss,
                "entropy_loss": entropy_loss,
                "approx_kl": batch.real(ratio - 1 - log_ratio).mean(),  # Schulman's estimator k3
                "clip_fraction": batch.real(error > clip_range).float().mean(),
                "loss": loss,
            }
            if kl is not None:
                metrics["pretrained_kl"] = kl
            metrics = {name: value * weight for name, value in metrics.items()}
            # The largest |r - 1|: 0 but for rounding as long as the policy is the one that acted.
            metrics["ratio_error"] = error.max() * float(weight > 0)
        return loss * weight, metrics


def warn_of_ratio(error: float) -> None:
    """Say in one line where the ratio before the first update is further from 1 than rounding explains."""
    if error > (LARGEST_ERROR_TF32 if products_are_rounded() else LARGEST_ERROR):
        log.warning(
            "PPO: the ratio of new to old probabilities is off from 1 by %.2g before the first update: the policy "
            "computes something else while it learns than while it acts, as by a dropout or a batch norm inside; "
            "unroll.testing.check_backbone looks for that in a backbone",
            error,
        )
