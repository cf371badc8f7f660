"""Does it learn? Minutes each: python -m pytest -m slow"""

import numpy as np
import pytest
import torch

from agents import DecisionAgent, scoring
from envs import load_episodes
from policies.backbones import BACKBONES

pytestmark = pytest.mark.slow
TARGETS = [300.0, 700.0, 1200.0, 2000.0, 3500.0]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_who_is_asked_for_more_gets_more_and_beats_the_data_and_behaviour_cloning(backbone):
    torch.set_num_threads(2)
    episodes = load_episodes("embedded:hopper-v5-replay")

    def returns(condition):
        agent = DecisionAgent(episodes, warmup_steps=300, policy_kwargs=dict(backbone=backbone, condition=condition))
        agent.learn(3000)
        result = scoring.evaluate(agent, "Hopper-v5", TARGETS, 20, seed=1_000_000, memory="carried")
        return np.array([entry["return_mean"] for entry in result["results"]])

    asked, cloned = returns("return"), returns("none")
    ranks = asked.argsort().argsort()
    assert np.corrcoef(ranks, range(len(TARGETS)))[0, 1] >= 0.9
    assert asked.max() > 2 * episodes.returns.mean()
    assert asked.max() > cloned[0]
