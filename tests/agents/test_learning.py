"""Does it learn? Minutes each: python -m pytest -m slow"""

import numpy as np
import pytest
import torch

from unroll.agents import AGENTS, DecisionAgent, schemas
from unroll.agents.decision.player import decision_player
from unroll.agents.evaluation import scoring
from unroll.configs import load_config
from unroll.envs import load_episodes
from unroll.policies.backbones import BACKBONES

pytestmark = pytest.mark.slow
TARGETS = [300.0, 700.0, 1200.0, 2000.0, 3500.0]


@pytest.fixture(scope="module")
def episodes():
    torch.set_num_threads(2)
    return load_episodes("embedded:hopper-v5-replay")


def returns(agent):
    player = decision_player(agent, "Hopper-v5", TARGETS, agent.policy.memory)
    result = scoring.evaluate(player, 20, seed=1_000_000)
    return np.array([entry["return_mean"] for entry in result["results"]])


@pytest.fixture(scope="module")
def cloned(episodes):
    """The return of behaviour cloning, as in configs/decision/bc.yaml."""
    policy = dict(condition="none", previous_action=False, memory="window", action_modes=0)
    agent = DecisionAgent(episodes, context=1, batch_size=256, top_fraction=1.0, policy_kwargs=policy)
    return returns(agent.learn(3000))[0]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_who_is_asked_for_more_gets_more_and_beats_the_data(episodes, cloned, backbone):
    torch.set_num_threads(2)
    asked = returns(DecisionAgent(episodes, policy_kwargs=dict(backbone=backbone, condition="return")).learn(3000))
    # below the 90 % quantile of the data's returns; beyond it a single seed may fall off
    assert (np.diff(asked[:3]) > 0).all(), asked
    assert asked.max() > 2 * episodes.returns.mean(), asked
    if backbone == "mingru":  # after so few updates the Transformer's returns still fall off beyond the bulk
        assert asked.max() > cloned, (asked, cloned)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ppo_balances_a_pole_whose_velocities_it_has_to_remember(backbone, tmp_path):
    torch.set_num_threads(1)
    flags = ["--backbone.name", backbone, "--run_dir", str(tmp_path), "--device", "cpu"]
    config = load_config(["--config", "configs/ppo/cartpole_masked.yaml", *flags], schemas())
    job = AGENTS["ppo"].training(config, print)
    job.agent.learn(job.config.steps)
    result = scoring.evaluate(job.player(), 20, seed=1_000_000)
    # without memory about 45 is possible; single seeds of some backbones end between 200 and 400 of 500
    assert result["results"][0]["return_mean"] > 150
    assert result["ablation"]["return_mean"] < 100


@pytest.mark.parametrize(("config", "above", "forgetful"), [("cartpole_masked", 300, 100), ("tmaze", 0.9, 0.8)])
def test_ppo_learns_in_environments_of_tensors_as_in_those_of_arrays(config, above, forgetful, tmp_path):
    torch.set_num_threads(1)
    flags = ["--vector", "tensor", "--run_dir", str(tmp_path), "--device", "cpu"]
    job = AGENTS["ppo"].training(load_config(["--config", f"configs/ppo/{config}.yaml", *flags], schemas()), print)
    job.agent.learn(job.config.steps)
    result = scoring.evaluate(job.player(), 20, seed=1_000_000)
    assert result["results"][0]["return_mean"] > above
    assert result["ablation"]["return_mean"] < forgetful
