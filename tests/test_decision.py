"""The decision agent: acting is training, padding is nothing, an interrupted run ends where an undisturbed one does."""

import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

from agents import DecisionAgent
from agents.checkpoint import CheckpointError
from agents.decision import TrainingError
from agents.evaluation import Episode, play, summarize
from envs.datasets import SEQUENCE_KEYS, SequenceSampler
from envs.make import make_env, make_vec_env
from envs.wrappers import ReturnToGo
from policies.backbones import BACKBONES
from toy import LENGTH, toy_episodes

SMALL = dict(d_model=16, n_layers=2)


def make_agent(episodes=None, context=6, **kwargs):
    policy = SMALL | {
        key: kwargs.pop(key)
        for key in list(kwargs)
        if key in ("backbone", "tokens", "condition", "previous_action", "memory", "dropout")
    }
    return DecisionAgent(
        episodes or toy_episodes(),
        context=context,
        warmup_steps=10,
        batch_size=16,
        device="cpu",
        policy_kwargs=policy,
        **kwargs,
    )


def whole_episode(episodes, index):
    sampler = SequenceSampler(episodes, int(episodes.lengths.max()))
    return sampler.windows(torch.tensor([int(episodes.starts[index])]))


def replay(agent, episodes, index, n_copies=2):
    """What the rollout path predicts along a recorded episode, for a batch of copies of it."""
    steps, state, predictions = whole_episode(episodes, index), None, []
    for t in range(int(episodes.lengths[index])):
        observation = {key: steps[key][0, t].numpy()[None].repeat(n_copies, 0) for key in SEQUENCE_KEYS}
        observation["return_to_go"] = observation["return_to_go"][:, None]
        observation["timestep"] = observation["timestep"][:, None]
        actions, state = agent.predict(observation, state, np.full(n_copies, t == 0))
        predictions.append(actions)
    return np.stack(predictions, 1)


VARIANTS = list(itertools.product(BACKBONES, ("fused", "interleaved"), ("return", "none"), (False, True)))


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


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_no_loss_and_no_gradient(backbone, discrete):
    episodes = toy_episodes(4, discrete)
    agent = make_agent(episodes, context=LENGTH, backbone=backbone, dropout=0.0, tokens="interleaved")
    sampler = SequenceSampler(episodes, 8)
    batch = sampler.windows(torch.tensor([LENGTH - 3, LENGTH - 5]))  # three and five steps, then padding
    assert batch["mask"].sum(1).tolist() == [3, 5]

    def loss_and_gradient(batch):
        agent.policy.zero_grad()
        loss = agent.policy.loss(batch)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in agent.policy.parameters()])

    loss, gradient = loss_and_gradient(batch)
    scrambled = {key: value.clone() for key, value in batch.items()}
    for key, value in scrambled.items():
        if key != "mask":
            value[~batch["mask"]] = 0 if value.dtype == torch.int64 else 1e3
    other_loss, other_gradient = loss_and_gradient(scrambled)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-3, atol=1e-6)

    # the mean is over the steps that are there: each window alone, weighted by its length
    alone = [
        agent.policy.loss({key: value[i : i + 1, :n] for key, value in batch.items()}).item()
        for i, n in ((0, 3), (1, 5))
    ]
    assert loss == pytest.approx((3 * alone[0] + 5 * alone[1]) / 8, rel=1e-5)


def test_the_loss_of_a_continuous_action_is_the_squared_error_in_units_of_half_its_range():
    agent = make_agent(toy_episodes(4), dropout=0.0)
    batch = agent.sampler.windows(torch.tensor([0, 20]))
    agent.policy.eval()
    prediction = agent.policy(batch)[0]
    expected = ((prediction - batch["action"] / 2) ** 2).squeeze(-1)[batch["mask"]].mean()  # bounds are ±2
    assert agent.policy.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


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


@pytest.mark.parametrize(
    ("backbone", "discrete"), [(name, discrete) for name in BACKBONES for discrete in (False, True)]
)
def test_an_agent_that_is_asked_for_more_gets_more(backbone, discrete):
    agent = make_agent(toy_episodes(200, discrete), context=LENGTH, backbone=backbone, dropout=0.0, learning_rate=3e-3)
    agent.learn(250)
    asked = (4, 12, 20) if discrete else (-12, 0, 12)
    episodes = [Episode(seed=100 + i, target_return=target) for target in asked for i in range(5)]
    play(agent, lambda: ReturnToGo(make_env(agent.task["env"])), episodes)
    reached = [np.mean([e.total for e in episodes if e.target_return == target]) for target in asked]
    np.testing.assert_allclose(reached, asked, atol=5)  # far less than what lies between them


def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(tmp_path):
    episodes = toy_episodes()
    whole = make_agent(episodes, dropout=0.2).learn(12)
    part = make_agent(episodes, dropout=0.2)

    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 5

    part.learn(12, Stop())
    assert part.num_timesteps == 5
    part.save(tmp_path / "checkpoint")
    torch.randn(100)  # the random state of the process does not matter
    resumed = DecisionAgent.load(tmp_path / "checkpoint", device="cpu", episodes=episodes)
    resumed.learn(12 - 5, reset_num_timesteps=False)
    for (name, a), b in zip(whole.policy.state_dict().items(), resumed.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


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


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    agent = make_agent()
    agent.policy.config["d_model"] = 32
    agent.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="of another model or version"):
        DecisionAgent.load(tmp_path / "checkpoint")


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


def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine():
    agent = make_agent(learning_rate=1e-2)
    agent._total_timesteps = 100
    rates = []
    for agent.num_timesteps in (0, 4, 9, 55, 99):
        rates.append(agent._learning_rate())
    assert rates[:3] == pytest.approx([1e-3, 5e-3, 1e-2])
    assert rates[3] == pytest.approx(5e-3, rel=0.01)
    assert 0 <= rates[4] < 1e-4


def test_a_context_longer_than_every_episode_trains_on_whole_episodes():
    agent = make_agent(toy_episodes(5), context=1000)
    batch = agent.sampler.sample(8, 0, 0)
    assert batch["mask"].all()
    assert (batch["timestep"][:, 0] == 0).all()
    agent.learn(1)


def test_timesteps_beyond_the_longest_episode_are_clamped():
    agent = make_agent(toy_episodes(5), timestep_embedding=True)
    steps = whole_episode(toy_episodes(5), 0)
    agent.policy.eval()
    last = steps | {"timestep": torch.full_like(steps["timestep"], LENGTH - 1)}  # the last one that the data know
    beyond = steps | {"timestep": steps["timestep"] + 10_000}
    assert torch.equal(agent.policy(last)[0], agent.policy(beyond)[0])


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


def test_returns_that_never_vary_and_actions_without_a_choice_leave_a_policy_that_sees():
    episodes = toy_episodes(5)
    episodes.rewards[:] = 0
    episodes.actions[:] = 2.0
    episodes = dataclasses.replace(episodes, action_space=gym.spaces.Box(np.float32([2]), np.float32([2])))
    agent = make_agent(episodes).learn(3)
    assert agent.policy.return_scale == 1
    assert replay(agent, episodes, 0) == pytest.approx(2.0)


def test_the_control_of_the_best_episodes_is_told_of_the_whole_dataset():
    episodes = toy_episodes(20)
    agent = make_agent(episodes, top_fraction=0.1, condition="none")
    assert agent.task["return_mean"] == pytest.approx(episodes.returns.mean())
    assert agent.sampler.n_steps < episodes.n_steps / 5


def test_behaviour_cloning_does_not_see_the_return():
    agent = make_agent(condition="none")
    steps = whole_episode(toy_episodes(5), 0)
    agent.policy.eval()
    before = agent.policy(steps)[0]
    steps["return_to_go"] = steps["return_to_go"] + 100
    assert torch.equal(before, agent.policy(steps)[0])


def test_a_step_sees_the_action_before_it_only_when_it_shall():
    for previous_action in (True, False):
        agent = make_agent(previous_action=previous_action)
        agent.policy.eval()
        steps = whole_episode(toy_episodes(5), 0)
        before = agent.policy(steps)[0]
        steps["previous_action"] = steps["previous_action"] + 1
        assert torch.equal(before, agent.policy(steps)[0]) is not previous_action


def test_observations_are_normalised_by_the_data_and_constant_dimensions_survive():
    episodes = toy_episodes(5)
    episodes.observations[:, 1] = 7.0
    agent = make_agent(episodes)
    normalised = agent.policy.normalizer(torch.from_numpy(episodes.observations))
    assert normalised[:, 0].std().item() == pytest.approx(1, rel=0.02)
    assert normalised[:, 1].abs().max() < 1e-5


def test_a_loss_that_is_not_finite_stops_the_learning_with_its_update():
    agent = make_agent()
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="train/loss became nan at or before update 5"):
        agent.learn(10, log_interval=5)


def test_an_interval_holds_the_mean_and_scores_are_scaled_to_the_reference():
    summary = summarize([10.0, 20.0, 30.0], (10.0, 30.0))
    assert summary["return_mean"] == 20
    assert summary["normalized_score"] == pytest.approx(50)
    assert summary["return_interval"][0] <= 20 <= summary["return_interval"][1]
    assert summarize([1.0, 2.0], None)["normalized_score"] is None
