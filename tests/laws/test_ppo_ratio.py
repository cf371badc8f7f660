"""Law 6: after any rollout the ratio of PPO is 1, for every backbone, action space, observation and way to cut."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from memory_tasks import ACTIONS, OBSERVATIONS, MaskedNoise, Noise, make_ppo, rollout, vector
from unroll.agents.ppo.loss import PPOLoss
from unroll.agents.ppo.player import PPOActor
from unroll.agents.ppo.step import ActorStep
from unroll.policies.backbones import BACKBONES

SETTINGS = dict(clip_range=0.2, clip_range_vf=None, ent_coef=0.0, vf_coef=0.5)
TOLERANCE = 1e-5

BYTES = spaces.Box(0, 200, (3,), np.uint8)
WHOLE = {
    "bytes": (BYTES, None),
    "whole numbers": (spaces.Box(-1000, 1000, (3,), np.int64), None),
    "bits": (spaces.Box(0, 1, (3,), np.bool_), None),
    "dict": (spaces.Dict(a=BYTES, b=spaces.Discrete(3)), ["a"]),
    "dict with an image": (spaces.Dict(a=BYTES, view=spaces.Box(0, 255, (36, 36, 1), np.uint8)), ["a"]),
}


def assert_ratio_is_one(agent):
    sequences, logged = rollout(agent)
    if agent.policy.reset_on_done:
        assert sequences.reset[:, 1:].any(), "no episode ends in the middle of a sequence"
        assert not sequences.reset[:, 0].all(), "no sequence begins in the middle of an episode"
    assert all(error < TOLERANCE for error in logged)
    agent.policy.set_training_mode(True)
    for rows, _ in sequences.minibatches(2):
        assert PPOLoss(agent.policy)(sequences.select(rows), **SETTINGS)[1]["ratio_error"] < TOLERANCE
    return sequences


@pytest.mark.parametrize("sequence_length", [pytest.param(None, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_ratio_is_one_for_every_backbone_and_kind_of_action(backbone, action, sequence_length):
    options = {"window": 5} if backbone in ("transformer", "sharnn") else {}
    agent = make_ppo(
        vector(lambda: Noise("box", action)),
        backbone=backbone,
        backbone_options=options,
        sequence_length=sequence_length,
        learning_rate=1e-2,
    )
    assert_ratio_is_one(agent)


@pytest.mark.parametrize(
    ("observation", "backbone"), [*((kind, "mingru") for kind in OBSERVATIONS), *(("dict", name) for name in BACKBONES)]
)
def test_the_ratio_is_one_for_every_kind_of_observation(observation, backbone):
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy", "dict of images": "MultiInputPolicy"}
    env = vector(lambda: Noise(observation, "discrete"), 2)
    assert_ratio_is_one(make_ppo(env, policy.get(observation, "MlpPolicy"), backbone=backbone, sequence_length=8))


@pytest.mark.parametrize("observation", ["box", "dict"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, np.float64])
def test_the_ratio_is_one_for_continuous_actions_of_any_type(dtype, observation):
    """What is drawn is learned from, and the environment is given what its space contains."""

    def make():
        env = Noise(observation)
        env.action_space = spaces.Box(0, 3, (2,), dtype)
        return env

    agent = make_ppo(vector(make, 2), "MultiInputPolicy" if observation == "dict" else "MlpPolicy", sequence_length=8)
    sequences = assert_ratio_is_one(agent)
    assert sequences.actions.min() < -0.5
    assert (sequences.actions != sequences.actions.round()).any()


@pytest.mark.parametrize("kind", WHOLE)
def test_the_ratio_is_one_for_whole_numbers_that_are_normalised(kind):
    space, keys = WHOLE[kind]

    def make():
        env = Noise()
        env.observation_space = space
        return env

    env = VecNormalize(vector(make, 2), norm_obs_keys=keys)
    agent = make_ppo(env, "MlpPolicy" if keys is None else "MultiInputPolicy", sequence_length=8, learning_rate=1e-2)
    sequences = assert_ratio_is_one(agent)
    observations = sequences.observations if keys is None else sequences.observations["a"]
    assert observations.unique().numel() > 10
    if kind == "dict with an image":
        assert sequences.observations["view"].dtype == torch.uint8

    # Whoever acts with it, acts by the same numbers.
    shown = env.unwrapped.reset()
    chosen, _ = agent.predict(env.normalize_obs(shown), deterministic=True)
    np.testing.assert_array_equal(PPOActor(agent, env).predict(shown)[0], chosen)
    step = ActorStep(agent.policy, env.unwrapped.observation_space, env)
    parts = shown if keys else {"": shown}
    inputs = [torch.from_numpy(parts[key]) for key in step.names]
    state = [port.zeros(2) for port in step.state]
    action, *_ = step(*inputs, torch.ones(2, dtype=torch.bool), *state)
    np.testing.assert_allclose(action.detach().numpy(), chosen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("action", ["discrete", "multidiscrete", "multibinary"])
@pytest.mark.parametrize("sequence_length", [None, 4])
def test_the_ratio_is_one_and_nothing_forbidden_is_done_under_masks(action, sequence_length):
    agent = make_ppo(vector(lambda: MaskedNoise("box", action)), sequence_length=sequence_length, ent_coef=0.01)
    sequences = assert_ratio_is_one(agent)
    assert not sequences.action_masks.all()


@pytest.mark.parametrize(
    "changes", [{"reset_on_done": False}, {"separate_critic": False}, {"share_features_extractor": False}]
)
@pytest.mark.parametrize("backbone", ["mingru", "lstm", "transformer"])
def test_the_ratio_is_one_with_a_memory_that_is_kept_and_with_a_critic_of_its_own(backbone, changes):
    sequences = assert_ratio_is_one(make_ppo(vector(Noise), backbone=backbone, sequence_length=8, **changes))
    assert sequences.reset.any() == changes.get("reset_on_done", True)


@pytest.mark.parametrize("squash", [False, True])
def test_the_ratio_is_one_with_state_dependent_exploration(squash):
    agent = make_ppo(vector(Noise), use_sde=True, sde_sample_freq=4)
    agent.policy_kwargs["squash_output"] = squash
    agent._setup_model()
    assert_ratio_is_one(agent)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_memory_that_leaks_across_episodes_or_is_lost_between_sequences_is_seen(backbone):
    """What the tests above would miss if they could not fail."""
    agent = make_ppo(vector(lambda: Noise("box", "discrete")), backbone=backbone, sequence_length=4, learning_rate=1e-2)
    agent.policy.action_net.weight.data.mul_(100)  # an untrained policy hardly looks at its memory
    sequences, _ = rollout(agent, 1)
    leaking = dataclasses.replace(sequences, reset=torch.zeros_like(sequences.reset))
    lost = dataclasses.replace(sequences, state=agent.policy.initial_state(len(sequences)))
    for wrong in (leaking, lost):
        assert PPOLoss(agent.policy)(wrong, **SETTINGS)[1]["ratio_error"] > 100 * TOLERANCE
