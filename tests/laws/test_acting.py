"""Acting is training: a recorded episode replayed through the rollout path gives what the training forward gives."""

import itertools

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

from toy import LENGTH, make_agent, replay, toy_episodes, whole_episode
from unroll.agents import DecisionAgent
from unroll.agents.evaluation.play import Episode, play
from unroll.envs.datasets.sampling import SEQUENCE_KEYS
from unroll.envs.make import make_env, make_vec_env
from unroll.envs.wrappers import ReturnToGo
from unroll.policies.backbones import BACKBONES

VARIANTS = list(itertools.product(BACKBONES, ("fused", "interleaved"), ("best", "return", "none"), (False, True)))


@pytest.mark.parametrize(("backbone", "tokens", "condition", "discrete"), VARIANTS)
def test_acting_is_training(backbone, tokens, condition, discrete):
    episodes = toy_episodes(8, discrete)
    agent = make_agent(
        episodes, context=LENGTH, backbone=backbone, tokens=tokens, condition=condition, timestep_embedding=True
    )
    agent.learn(3)
    agent.policy.eval()
    with torch.no_grad():
        prediction, _ = agent.policy(whole_episode(episodes, 2))
        expected = agent.policy.action.choose(prediction, deterministic=True).numpy()
    for memory in ("carried", "window"):  # the window is as long as the episode
        agent.policy.memory = memory
        np.testing.assert_allclose(replay(agent, episodes, 2), expected.repeat(2, 0), atol=2e-5)


@pytest.mark.parametrize("memory", ["carried", "window"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tokens", ["fused", "interleaved"])
def test_where_no_episode_begins_nothing_is_forgotten(backbone, tokens, memory):
    agent = make_agent(toy_episodes(4), context=4, backbone=backbone, tokens=tokens, memory=memory)
    steps, states = whole_episode(toy_episodes(4), 0), [None, None, None]
    shown = []  # what the policy is told of episodes that begin
    step = agent.policy.step
    agent.policy.step = lambda inputs, state, start: shown.append(start) or step(inputs, state, start)
    for t in range(LENGTH):
        observation = {key: value[0, t].expand(2, *value.shape[2:]).numpy() for key, value in steps.items()}
        observation |= {key: observation[key][:, None] for key in ("return_to_go", "timestep")}
        never, states[0] = agent.predict(observation, states[0], None)
        none, states[1] = agent.predict(observation, states[1], np.zeros(2, bool))
        inputs = {key: torch.as_tensor(value) for key, value in observation.items()}
        inputs |= {key: inputs[key].squeeze(-1) for key in ("return_to_go", "timestep")}
        with torch.no_grad():
            state = agent.policy.initial_state(2) if states[2] is None else states[2]
            prediction, states[2] = step(inputs, state, torch.zeros(2, dtype=torch.bool))
        np.testing.assert_array_equal(never, none)
        np.testing.assert_allclose(none, agent.policy.action.choose(prediction, True).numpy(), atol=1e-5)
    assert shown == [None] * 2 * LENGTH


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tokens", ["fused", "interleaved"])
def test_a_window_is_the_last_steps_encoded_anew(backbone, tokens):
    episodes = toy_episodes(4)
    agent = make_agent(episodes, context=5, backbone=backbone, tokens=tokens, memory="window")
    agent.learn(2)
    steps, played = whole_episode(episodes, 1), replay(agent, episodes, 1)
    agent.policy.eval()
    for t in range(LENGTH):
        last = {key: value[:, max(0, t - 4) : t + 1] for key, value in steps.items()}
        with torch.no_grad():
            prediction = agent.policy(last)[0][:, -1]
        np.testing.assert_allclose(played[0, t], agent.policy.action.choose(prediction, True)[0].numpy(), atol=2e-5)


@pytest.mark.parametrize("memory", ["carried", "window"])
@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_an_observation_that_is_not_a_number_is_forgotten_with_its_episode(backbone, memory):
    policy = make_agent(toy_episodes(4), backbone=backbone, tokens="interleaved", memory=memory).policy.eval()
    state = policy.initial_state(2)
    steps = whole_episode(toy_episodes(4), 0)
    for t in range(6):
        inputs = {key: value[:, t].repeat_interleave(2, 0) for key, value in steps.items()}
        if t == 1:
            inputs["observation"][0] = torch.nan
        with torch.no_grad():
            prediction, state = policy.step(inputs, state, torch.tensor([t == 3, False]))
        assert bool(prediction.isfinite().all()) is (t not in (1, 2))


@pytest.mark.parametrize("memory", ["carried", "window"])
def test_an_episode_start_resets_the_memory_of_its_row_alone(memory):
    episodes = toy_episodes(4)
    agent = make_agent(episodes, memory=memory)
    first, second = replay(agent, episodes, 0, 1), replay(agent, episodes, 1, 1)
    steps = [whole_episode(episodes, 0), whole_episode(episodes, 1)]
    state, rows = None, []
    for t in range(2 * LENGTH - 3):  # row 1 begins its episode three steps before row 0 begins its second
        observation = {}
        for key in SEQUENCE_KEYS:
            row0 = steps[0][key][0, t % LENGTH]
            row1 = steps[1][key][0, (t + 3) % LENGTH]
            observation[key] = torch.stack([row0, row1]).numpy()
        observation["return_to_go"] = observation["return_to_go"][:, None]
        observation["timestep"] = observation["timestep"][:, None]
        start = np.array([t % LENGTH == 0, (t + 3) % LENGTH == 0])
        actions, state = agent.predict(observation, state, start)
        rows.append(actions)
    rows = np.stack(rows, 1)
    np.testing.assert_allclose(rows[0, :LENGTH], first[0], atol=1e-5)
    np.testing.assert_allclose(rows[1, LENGTH - 3 : 2 * LENGTH - 3], second[0], atol=1e-5)


def test_the_wrapper_shows_the_return_to_go_that_training_saw():
    episodes = toy_episodes(3)
    env = ReturnToGo(make_env("ToyBox-v0"))
    steps = whole_episode(episodes, 1)
    observation, _ = env.reset(seed=1, options={"target_return": float(episodes.returns[1])})
    for t in range(LENGTH):
        for key in SEQUENCE_KEYS:
            np.testing.assert_allclose(
                np.squeeze(observation[key]), steps[key][0, t].numpy().squeeze(), atol=1e-4, err_msg=key
            )
        assert env.observation_space.contains(observation)
        observation = env.step(episodes.actions[LENGTH + t])[0]


@pytest.mark.parametrize("discrete", [False, True])
def test_a_saved_agent_acts_the_same(tmp_path, discrete):
    episodes = toy_episodes(10, discrete)
    agent = make_agent(episodes, backbone="transformer", tokens="interleaved", timestep_embedding=True).learn(3)
    agent.save(tmp_path / "checkpoint")
    loaded = DecisionAgent.load(tmp_path / "checkpoint", device="cpu")
    np.testing.assert_array_equal(replay(agent, episodes, 0), replay(loaded, episodes, 0))
    assert loaded.task == agent.task | {"reference_returns": [0.0, 24.0]}
    with pytest.raises(ValueError, match="no episodes"):
        loaded.learn(1)


def test_the_callbacks_and_the_evaluation_of_stable_baselines3_work_unchanged(tmp_path):
    env = make_vec_env("ToyBox-v0", 3, target_return=5.0)
    agent = make_agent(env=env)
    callbacks = [
        EvalCallback(env, eval_freq=5, n_eval_episodes=3, verbose=0),
        CheckpointCallback(5, str(tmp_path), name_prefix="agent"),
    ]
    agent.learn(10, callbacks)
    assert callbacks[0].last_mean_reward != -np.inf
    assert DecisionAgent.load(tmp_path / "agent_10_steps.zip", env).num_timesteps == 10
    agent.learn(2, lambda *_: True, progress_bar=True)
    mean, _ = evaluate_policy(agent, env, n_eval_episodes=5)
    episodes = [Episode(seed, 5.0) for seed in range(5)]
    play(agent, lambda: ReturnToGo(make_env("ToyBox-v0")), episodes)
    assert mean == pytest.approx(np.mean([e.total for e in episodes]), abs=3)


def test_an_episode_does_not_depend_on_how_many_play_beside_it():
    agent = make_agent().learn(5)

    def totals(n_envs):
        episodes = [Episode(seed, target) for target in (-5.0, 5.0) for seed in range(4)]
        play(agent, lambda: ReturnToGo(make_env("ToyBox-v0")), episodes, n_envs=n_envs)
        assert {e.length for e in episodes} == {LENGTH}
        return [e.total for e in episodes]

    assert totals(1) == pytest.approx(totals(3), abs=1e-4)
    assert totals(1) == pytest.approx(totals(100), abs=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tokens", ["fused", "interleaved"])
@pytest.mark.parametrize("context", [1, 4, 1000])
def test_an_agent_can_learn_on_after_it_has_acted(backbone, tokens, context):
    agent = make_agent(toy_episodes(5), context=context, backbone=backbone, tokens=tokens)
    for memory in ("carried", "window"):
        agent.policy.memory = memory
        agent.learn(1)
        play(agent, lambda: ReturnToGo(make_env("ToyBox-v0")), [Episode(0, 1.0), Episode(1, 1.0)])
    agent.learn(1)
