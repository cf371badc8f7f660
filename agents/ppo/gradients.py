"""The two parts of a policy's parameters, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unroll.policies.actor_critic import RecurrentActorCriticPolicy

Parts = tuple[list[nn.Parameter], list[nn.Parameter]]


def critic_parameters(policy: RecurrentActorCriticPolicy) -> list[nn.Parameter]:
    """List the parameters on which the values depend, and the actions do not."""
    parts: list[nn.Module] = [policy.mlp_extractor.value_net, policy.value_net]
    if policy.separate_critic:
        parts.append(policy.encoders[1])
    if not policy.share_features_extractor:
        parts.append(policy.vf_features_extractor)
    return [parameter for part in parts for parameter in part.parameters()]


def actor_parameters(policy: RecurrentActorCriticPolicy) -> list[nn.Parameter]:
    """List the parameters on which the actions depend: all others, a shared encoder among them."""
    critic = {id(parameter) for parameter in critic_parameters(policy)}
    return [parameter for parameter in policy.parameters() if id(parameter) not in critic]


def parameters_of(policy: RecurrentActorCriticPolicy) -> Parts:
    """List the parameters of the actor, and those of the critic."""
    return actor_parameters(policy), critic_parameters(policy)


def clip_gradients(parts: Parts, max_norm: float) -> Tensor:
    """Clip the gradient of each part to this norm, and return the norm that both had.

    Returns may be large: together, the critic's gradient would make the actor's small.
    """
    actor, critic = (nn.utils.clip_grad_norm_(part, max_norm) for part in parts)
    return torch.hypot(actor, critic)
