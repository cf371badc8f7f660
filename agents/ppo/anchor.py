"""What keeps the first updates of PPO from undoing what its policy was pretrained to do."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unroll.agents.ppo.sequences import Sequences
from unroll.policies.actor_critic import RecurrentActorCriticPolicy
from unroll.policies.backbones import State

SETTINGS = ("critic_first", "kl_coef", "kl_steps", "steps")  # of an Anchor, in a checkpoint


class Anchor:
    """The pretrained policy, to which PPO is tied at first.

    For ``critic_first`` environment steps the critic learns alone: advantages by a critic that has not seen what the
    policy does now would lead the actor anywhere. From the pretraining on, ``kl_coef`` · KL(π_pretrained ‖ π) is added
    to the loss, as in VPT (Baker et al. 2022, arXiv 2206.11795). It fades linearly to 0 over ``kl_steps`` steps.

    π_pretrained is a frozen copy. It reads each rollout once, and carries a memory of its own from one to the next.

    Args:
        steps: environment steps since the pretraining.
    """

    def __init__(
        self, policy: RecurrentActorCriticPolicy, critic_first: int, kl_coef: float, kl_steps: int, steps: int = 0
    ):
        self.critic_first = critic_first
        self.kl_coef = kl_coef
        self.kl_steps = kl_steps
        self.steps = steps
        self.reference = frozen_copy(policy) if self.coefficient else None
        self.memory: State | None = None  # of the copy before the next rollout; None: that of the policy that acts

    @property
    def coefficient(self) -> float:
        """The weight of the KL divergence at this point of the training."""
        return self.kl_coef * (1 - self.steps / self.kl_steps) if self.steps < self.kl_steps else 0.0

    @property
    def holds_actor(self) -> bool:
        """Whether the critic still learns alone."""
        return self.steps < self.critic_first

    @property
    def over(self) -> bool:
        return not (self.holds_actor or self.coefficient)

    def count(self, steps: int) -> None:
        """Count the environment steps of a rollout that was learned from."""
        self.steps += steps
        if not self.coefficient:
            self.reference = None
            self.memory = None

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the copy's weights."""
        return {name: getattr(self, name) for name in SETTINGS}

    @torch.no_grad()
    def with_reference(self, sequences: Sequences, n_envs: int) -> Sequences:
        """Return the sequences of a rollout with the distributions that the copy has in every step."""
        if self.reference is None:
            return sequences
        parts = []
        for rows in torch.arange(len(sequences), device=sequences.reset.device).split(n_envs):
            part = sequences.select(rows)
            if self.memory is None:
                # Until the first update the policy that acts is the copy, and so is its memory.
                self.memory = part.state
            self.reference.evaluate_sequences(
                part.observations, part.actions, self.memory, part.reset, part.action_masks
            )
            parts.append(parameters_of(self.reference.action_dist).unflatten(0, part.reset.shape))
            self.memory = self.reference.states_after(part.observations, self.memory, part.reset)
        return dataclasses.replace(sequences, reference=torch.cat(parts))


def frozen_copy(policy: RecurrentActorCriticPolicy) -> RecurrentActorCriticPolicy:
    """Copy a policy, without its optimizer, to be read alone."""
    # The distribution may hold the last loss's graph, which cannot be copied.
    distribution = copy.copy(policy.action_dist)
    known = {id(policy.action_dist): distribution, id(policy.optimizer): None}
    return copy.deepcopy(policy, known).requires_grad_(False)


def parameters_of(distribution: Distribution) -> Tensor:
    """Return the parameters of distributions: means and deviations [N, 2 · action_dim], or log-probabilities [N, n]."""
    inner: Any = distribution.distribution
    if isinstance(inner, Normal):
        return torch.cat([inner.mean, inner.stddev], -1)
    return inner.logits  # which PyTorch has normalised


def divergence(parameters: Tensor, distribution: Distribution) -> Tensor:
    """Compute KL(p ‖ q) [N], of p as ``parameters_of`` gave it and q as a policy has it now."""
    inner: Any = distribution.distribution
    if isinstance(inner, Normal):
        mean, deviation = parameters.chunk(2, -1)
        return kl_divergence(Normal(mean, deviation), inner).sum(-1)
    # PyTorch's own is infinite where q underflows. Under a mask both logits are the same, and p is 0.
    return (parameters.exp() * (parameters - inner.logits)).sum(-1)
