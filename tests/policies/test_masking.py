"""Action masks, as sb3-contrib's MaskablePPO has them: what is forbidden is never done, with memory."""

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import MaskedNoise, make_ppo, vector
from unroll.agents.ppo.player import MaskedPredictor
from unroll.policies.masking import check_masks


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 4)), "gives 4 values, MultiDiscrete.* has 5"),
        (np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]), "environment 1 allows no action"),
    ],
)
def test_masks_that_make_no_sense_are_refused(masks, message):
    space = MaskedNoise("box", "multidiscrete").action_space
    with pytest.raises(ValueError, match=message):
        check_masks(masks, space, 2)


def test_continuous_actions_cannot_be_masked():
    env = MaskedNoise("box", "box")
    env.action_masks = lambda: np.ones(2)
    with pytest.raises(ValueError, match="cannot be masked"):
        make_ppo(DummyVecEnv([lambda: env])).learn(1)


def test_predict_takes_masks_as_maskable_ppo_does():
    agent = make_ppo(vector(lambda: MaskedNoise("box", "discrete")))
    obs = agent.env.reset()
    for allowed in range(3):
        masks = np.eye(3, dtype=bool)[[allowed] * 3]
        for deterministic in (False, True):
            assert (agent.predict(obs, deterministic=deterministic, action_masks=masks)[0] == allowed).all()
    assert agent.predict(obs[0], action_masks=np.array([False, True, False]))[0] == 1


def test_a_masked_environment_is_evaluated_by_stable_baselines3_with_memory():
    env = vector(lambda: MaskedNoise("box", "multidiscrete"))
    agent = make_ppo(env)
    seen = []

    class Spy(MaskedPredictor):
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            seen.append(state)
            return super().predict(observation, state, episode_start, deterministic)

    evaluate_policy(Spy(agent, env), env, n_eval_episodes=5)  # the environment refuses what it forbids
    assert seen[0] is None
    assert all(state is not None for state in seen[1:])
