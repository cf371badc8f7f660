"""The actor learns as fast as it would alone, whatever the critic's gradient."""

import pytest
import torch

from memory_tasks import make_ppo
from unroll.agents.ppo.gradients import clip_gradients, parameters_of


@pytest.mark.parametrize("separate", [True, False])
def test_the_gradients_of_actor_and_critic_are_clipped_each_by_itself(separate):
    policy = make_ppo("CartPole-v1", separate_critic=separate).policy
    parts = parameters_of(policy)
    assert {id(p) for part in parts for p in part} == {id(p) for p in policy.parameters()}
    assert sum(map(len, parts)) == len(list(policy.parameters()))
    for part, size in zip(parts, (0.1, 1000.0), strict=True):
        whole = torch.randn(sum(p.numel() for p in part))
        whole *= size / whole.norm()
        for parameter, gradient in zip(part, whole.split([p.numel() for p in part]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
    both = clip_gradients(parts, 0.5)
    assert float(both) == pytest.approx(1000, rel=1e-3)
    norms = [float(torch.cat([p.grad.flatten() for p in part]).norm()) for part in parts]
    assert norms == pytest.approx([0.1, 0.5], rel=1e-3)
