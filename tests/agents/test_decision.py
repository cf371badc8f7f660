"""The decision agent's learning: padding is nothing, and an interrupted run ends where an undisturbed one does."""

import dataclasses
import io
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from toy import LENGTH, make_agent, replay, toy_episodes, whole_episode
from unroll.agents import DecisionAgent
from unroll.agents.algorithm import PlayOptions
from unroll.agents.common.callbacks import ShowProgress
from unroll.agents.common.checkpoint import read_checkpoint, write_checkpoint
from unroll.agents.decision import config as decision_config
from unroll.agents.decision.algorithm import Decision
from unroll.agents.decision.config import DecisionConfig
from unroll.agents.decision.player import show
from unroll.agents.decision.task import averages_in_blocks, with_mixture, with_share
from unroll.agents.decision.training import DecisionTraining
from unroll.agents.evaluation.play import Episode, play, summarize
from unroll.configs import BackboneConfig
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import SequenceSampler
from unroll.envs.make import make_env
from unroll.errors import CheckpointError, HyperparameterError
from unroll.policies.backbones import BACKBONES
from unroll.policies.decision import Outlook


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
        loss = agent.loss(batch)
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
        agent.loss({key: value[i : i + 1, :n] for key, value in batch.items()}).item() for i, n in ((0, 3), (1, 5))
    ]
    assert loss == pytest.approx((3 * alone[0] + 5 * alone[1]) / 8, rel=1e-5)


def test_the_loss_of_a_continuous_action_is_the_squared_error_in_units_of_half_its_range():
    agent = make_agent(toy_episodes(4), dropout=0.0, condition="return", action_modes=0)
    batch = agent.sampler.windows(torch.tensor([0, 20]))
    agent.policy.eval()
    prediction = agent.policy(batch)[0]
    expected = ((prediction - batch["action"] / 2) ** 2).squeeze(-1)[batch["mask"]].mean()  # bounds are ±2
    assert agent.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def reached(agent, asked):
    """The mean return of 5 episodes for each return that is asked for; None: for as much as can be had."""
    episodes = [Episode(seed=100 + i, target_return=target) for target in asked for i in range(5)]
    play(agent, lambda: show(make_env(agent.task["env"])), episodes)
    return [np.mean([e.total for e in episodes if e.target_return == target]) for target in asked]


@pytest.mark.parametrize("condition", ["best", "return"])
@pytest.mark.parametrize(("backbone", "discrete"), [(name, i % 2 == 1) for i, name in enumerate(BACKBONES)])
def test_an_agent_that_is_asked_for_more_gets_more(backbone, discrete, condition):
    how = dict(dropout=0.0, learning_rate=3e-3, condition=condition, top_fraction=1.0)
    agent = make_agent(toy_episodes(200, discrete), context=LENGTH, backbone=backbone, **how)
    agent.learn(250)
    asked = (4, 12, 20) if discrete else (-12, 0, 12)
    np.testing.assert_allclose(reached(agent, asked), asked, atol=5)  # far less than what lies between them


@pytest.mark.parametrize(("backbone", "discrete"), [(name, i % 2 == 0) for i, name in enumerate(BACKBONES)])
def test_an_agent_that_is_asked_for_nothing_gets_as_much_as_the_data_have(backbone, discrete):
    episodes = toy_episodes(200, discrete)
    how = dict(dropout=0.0, learning_rate=3e-3, condition="best")
    agent = make_agent(episodes, context=LENGTH, backbone=backbone, **how).learn(250)
    unasked, beyond = reached(agent, (None, 10 * episodes.returns.max()))
    assert unasked == pytest.approx(beyond, abs=1e-4)  # more than can be had is as much as can be had
    assert unasked >= np.quantile(episodes.returns, 0.95)


def test_the_outlook_is_an_upper_expectile_of_what_followed():
    returns = torch.tensor([0.0, 1.0, 2.0, 10.0])
    outlook = Outlook(4)
    features = torch.zeros(4, 4)  # nothing tells the four apart
    optimizer = torch.optim.Adam(outlook.value.parameters(), 0.05)
    for _ in range(600):
        optimizer.zero_grad()
        outlook.error(features, returns).sum().backward()
        optimizer.step()
    e = outlook.largest(features)[0].item()
    above, below = (returns - e).clamp_min(0).sum(), (e - returns).clamp_min(0).sum()
    assert 0.99 * float(above) == pytest.approx(0.01 * float(below), rel=0.05)  # what defines an expectile
    assert 9 < e < 10


def test_the_outlook_is_told_what_each_step_until_the_horizon_brings():
    episodes = toy_episodes(9).select(np.array([4, 1, 7, 2]))
    short = dataclasses.replace(episodes, lengths=np.array([LENGTH, 3, LENGTH - 3, LENGTH, LENGTH]))
    short = dataclasses.replace(
        short, terminated=np.zeros(5, bool), truncated=np.ones(5, bool), final_observations=None
    )
    agent = make_agent(short, top_fraction=1.0, condition="best")
    expected = short.returns_to_go / (LENGTH - np.concatenate([np.arange(n) for n in short.lengths]))
    np.testing.assert_allclose(np.concatenate(list(averages_in_blocks(short))), expected)
    assert float(agent.policy.return_scale) == pytest.approx(expected.std())
    assert float(agent.policy.average_mean) == pytest.approx(expected.mean())
    told = agent.policy.average(whole_episode(short, 2))[0, : LENGTH - 3]
    reached = told * expected.std() + expected.mean()
    np.testing.assert_allclose(reached, expected[LENGTH + 3 : 2 * LENGTH], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [1e2, 1e3])
def test_what_every_step_brings_alike_is_not_told(offset):
    episodes = toy_episodes(9)
    raised = dataclasses.replace(episodes, rewards=episodes.rewards + np.float32(offset))
    told = [make_agent(each, condition="best").policy.average(whole_episode(each, 2)) for each in (episodes, raised)]
    torch.testing.assert_close(*told, rtol=1e-3, atol=1e-5 * offset)  # the rounding of float32

    constant = dataclasses.replace(episodes, rewards=np.full_like(episodes.rewards, offset / 3))
    assert make_agent(constant, condition="best").policy.average(whole_episode(constant, 2)).abs().max() < 1e-5


@pytest.mark.parametrize("condition", ["best", "return"])
def test_returns_in_a_small_unit_are_scaled_as_those_in_a_large_one(condition):
    episodes = toy_episodes(9)
    small = dataclasses.replace(episodes, rewards=episodes.rewards * np.float32(1e-9))
    large, little = (make_agent(each, condition=condition).policy.return_scale for each in (episodes, small))
    assert float(little) == pytest.approx(1e-9 * float(large))
    nothing = dataclasses.replace(episodes, rewards=episodes.rewards * np.float32(1e-42))
    assert make_agent(nothing, condition=condition).policy.return_scale == 1


def test_a_checkpoint_of_before_the_mean_was_subtracted_acts_as_it_did(tmp_path):
    episodes = toy_episodes(9)
    agent = make_agent(episodes, condition="best")
    agent.save(tmp_path / "agent")
    tensors, state = read_checkpoint(tmp_path / "agent")
    del tensors["policy.average_mean"]
    write_checkpoint(tmp_path / "agent", tensors, state)
    old = DecisionAgent.load(tmp_path / "agent", episodes=episodes, device="cpu")
    steps = whole_episode(episodes, 2)
    expected = steps["return_to_go"] / ((LENGTH - steps["timestep"]) * agent.policy.return_scale)
    torch.testing.assert_close(old.policy.average(steps), expected)
    assert old.learn(1, reset_num_timesteps=False).policy.average_mean == 0


def test_an_agent_learns_from_the_best_episodes_and_says_so_of_what_it_never_saw(monkeypatch):
    episodes = toy_episodes(40)
    assert make_agent(episodes).sampler.n_steps == episodes.n_steps  # fewer than 2,000
    monkeypatch.setattr(decision_config, "LEAST_STEPS", 6 * LENGTH)
    monkeypatch.setattr(decision_config, "ENOUGH_STEPS", 5 * LENGTH)
    agent = make_agent(episodes)
    assert agent.sampler.n_steps == 6 * LENGTH
    assert make_agent(episodes, condition="return").sampler.n_steps == episodes.n_steps
    least = np.sort(episodes.returns)[-6]
    assert agent.task["return_least"] == pytest.approx(least)


@pytest.mark.parametrize(
    ("returns", "length", "share"),
    [
        (range(300), 1000, 0.1),  # a tenth is enough
        (range(100), 1000, 0.25),  # it is not, and few others are as good
        (range(40), 100, 0.5),  # 2,000 steps
        (range(5), 100, 1.0),
        (range(90, 110), 1000, 0.6),  # the best two have 108.5, and 98 is within a tenth of it
        (range(-119, -99), 1000, 0.55),  # -100.5, and -110
        ([100] * 20, 1000, 1.0),
        (range(1000, 1100), 1000, 0.25),  # all are as good, and a quarter is enough
        ([1] * 15 + [0] * 85, 1000, 0.15),  # the next ones are as bad as all that are left
        ([4] * 16 + [3] * 30 + [0] * 54, 1000, 0.16),
        ([1] * 5 + [0] * 95, 10, 1.0),  # a tenth are more than the good ones
    ],
)
def test_more_than_the_best_tenth_is_learned_from_where_that_is_little(returns, length, share):
    episodes = of_returns(returns, length)
    for condition in ("none", "best"):
        best = episodes.top(decision_config.top_fraction_of(None, condition, episodes))
        assert best.n_steps == share * episodes.n_steps


def test_no_episode_is_learned_from_by_a_rounding():
    lengths = np.random.default_rng(0).integers(60, 150, (100, 200))
    for each in lengths:
        episodes = of_returns([1] * 80 + [0] * 120, each)
        assert len(episodes.top(decision_config.top_fraction_of(None, "none", episodes))) == 80


@pytest.mark.parametrize(
    ("given", "condition", "share"), [(None, "return", 1.0), (0.4, "best", 0.4), (0.4, "none", 0.4)]
)
def test_a_share_that_is_given_counts_and_who_follows_returns_needs_all(given, condition, share):
    assert decision_config.top_fraction_of(given, condition, of_returns(range(300), 100)) == share


def of_returns(returns, length):
    """Episodes of one length, or of several, that have these returns."""
    n = len(returns)
    lengths = np.broadcast_to(length, n)
    steps = lengths.sum()
    rewards = np.zeros(steps, np.float32)
    rewards[np.cumsum(lengths) - 1] = returns
    return Episodes(
        observations=np.zeros((steps, 1), np.float32),
        actions=np.zeros((steps, 1), np.float32),
        rewards=rewards,
        lengths=lengths,
        terminated=np.zeros(n, bool),
        truncated=np.ones(n, bool),
        action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
        name="returns",
    )


def test_a_checkpoint_of_before_the_share_depended_on_the_returns_learns_on_from_its_tenth(tmp_path):
    episodes = of_returns(range(300), 100)
    make_agent(episodes).save(tmp_path / "agent")
    tensors, state = read_checkpoint(tmp_path / "agent")
    write_checkpoint(tmp_path / "old", tensors, state | {"format": 2})
    shares = [DecisionAgent.load(tmp_path / name, episodes=episodes).sampler.n_steps for name in ("agent", "old")]
    assert shares == [7_500, 3_000]


@pytest.mark.parametrize(
    ("written", "given", "condition", "steps", "share"),
    [
        (2, None, "none", 50_000, 0.1),
        (2, None, "best", 8_000, 0.25),
        (2, None, "none", 500, 1.0),
        (2, None, "return", 50_000, None),
        (2, 0.4, "none", 50_000, 0.4),
        (2, None, "none", None, None),
        (3, None, "none", 50_000, None),
    ],
)
def test_a_run_of_before_goes_on_with_the_tenth_that_it_learned_from(written, given, condition, steps, share):
    state = {"format": written, "config": {"top_fraction": given}, "policy": {"condition": condition}}
    state["task"] = {"data": {"steps": steps}} if steps else {}
    assert with_share(state)["config"] == {"top_fraction": share}


@pytest.mark.parametrize(
    ("condition", "given", "steps", "share"),
    [
        ("none", None, 50_000, 1.0),
        ("none", 0.1, 50_000, 0.1),
        ("return", None, 50_000, None),
        ("best", None, 50_000, 0.2),
        ("best", None, 500_000, 0.1),
        ("best", None, 500, 1.0),
        ("best", None, None, None),
    ],
)
def test_a_checkpoint_of_before_there_were_mixtures_has_none_and_the_episodes_of_then(condition, given, steps, share):
    before = {"config": {"top_fraction": given, "context": 20}, "policy": {"condition": condition, "d_model": 8}}
    before["task"] = {"data": {"steps": steps}} if steps else {}
    state = with_mixture(before)
    assert state["config"] == {"top_fraction": share, "context": 20}
    assert state["policy"] == {"condition": condition, "d_model": 8, "action_modes": 0}
    assert with_mixture(state) is state


@pytest.mark.parametrize(("modes", "refused"), [(0, False), (2, True)])
def test_a_checkpoint_whose_gaussians_have_bounded_means_is_refused(tmp_path, modes, refused):
    make_agent(toy_episodes(4), action_modes=modes).save(tmp_path / "run")
    tensors, state = read_checkpoint(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    write_checkpoint(tmp_path / "run", tensors, state | {"format": 1})
    if refused:
        with pytest.raises(CheckpointError, match=r"run: of another .*bounded.* trained again"):
            DecisionAgent.load(tmp_path / "run")
    else:
        DecisionAgent.load(tmp_path / "run")


def test_what_follows_no_return_is_asked_for_none(tmp_path):
    make_agent(toy_episodes(4)).save(tmp_path / "run")
    with pytest.raises(HyperparameterError, match="follows no return"):
        Decision().player(tmp_path / "run", None, PlayOptions(targets=[3.0], env="ToyBox-v0"))


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


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    agent = make_agent()
    agent.policy.config["d_model"] = 32
    agent.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="of another model or version"):
        DecisionAgent.load(tmp_path / "checkpoint")


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


def test_a_column_in_a_small_unit_is_scaled_and_rounding_is_not():
    episodes = toy_episodes(5)
    columns = episodes.observations.copy()
    normalised = []
    for unit in (1, 1e-6, 1e-9):
        episodes.observations[:] = columns * np.float32(unit)
        normalised.append(make_agent(episodes).policy.normalizer(torch.from_numpy(episodes.observations)))
    torch.testing.assert_close(normalised[1], normalised[0])
    assert normalised[2].abs().max() < 1e-7


def test_an_interval_holds_the_mean_and_scores_are_scaled_to_the_reference():
    summary = summarize([10.0, 20.0, 30.0], (10.0, 30.0))
    assert summary["return_mean"] == 20
    assert summary["normalized_score"] == pytest.approx(50)
    assert summary["return_interval"][0] <= 20 <= summary["return_interval"][1]
    assert summarize([1.0, 2.0], None)["normalized_score"] is None


@settings(max_examples=25, deadline=None)
@given(data=st.data(), tokens=st.sampled_from(["fused", "interleaved"]), discrete=st.booleans())
def test_whatever_stands_in_the_padding_the_loss_is_that_of_the_steps_alone(data, tokens, discrete):
    episodes = toy_episodes(3, discrete)
    agent = make_agent(episodes, context=6, dropout=0.0, tokens=tokens)
    first = data.draw(st.lists(st.integers(0, episodes.n_steps - 1), min_size=1, max_size=4))
    batch = SequenceSampler(episodes, 6).windows(torch.tensor(first))
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    padded = {key: value.clone() for key, value in batch.items()}
    for key, value in padded.items():
        if key != "mask":
            where = ~batch["mask"]
            value[where] = (3 * torch.rand(value[where].shape, generator=noise)).to(value.dtype)
    counts = batch["mask"].sum(1).tolist()
    with torch.no_grad():
        alone = [agent.loss({k: v[i : i + 1, :n] for k, v in batch.items()}) for i, n in enumerate(counts)]
        expected = sum(float(loss) * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
        assert float(agent.loss(padded)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_run_on_the_best_part_of_the_data_says_how_many_episodes_that_is():
    config = DecisionConfig(top_fraction=0.1, backbone=BackboneConfig(d_model=8, n_layers=1))
    config.evaluation.episodes = 0
    assert DecisionTraining(config, print).describe().startswith("the best 12 of 534 episodes, 99,975 steps of hopper")


def test_targets_of_an_agent_that_follows_none_are_told(capsys):
    """And not refused: a comparison of conditions has one list of targets for all of them."""
    config = DecisionConfig(backbone=BackboneConfig(d_model=8, n_layers=1))
    config.evaluation.targets = [1800.0, 900.0]
    DecisionTraining(config, print)
    assert "no return is asked for: with condition none an agent follows none" in capsys.readouterr().out
    config.condition = "best"
    DecisionTraining(config, print)
    assert "no return is asked for" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last", "alike"),
    [
        (np.arange(40.0), False),
        (np.append(np.arange(39.0), 1e9), True),
        (np.append(np.arange(39.0), -1e9), True),
        (np.append(np.zeros(39), 1e9), False),  # the others are all alike without it
        (1e9 + np.arange(40.0), False),  # all are large
        (np.where(np.arange(40) % 20 == 0, 100.0, -1e-3 * np.arange(40)), False),  # one success in twenty
    ],
)
def test_returns_beside_which_the_others_are_all_alike_are_told(last, alike, fields, write, capsys):
    ends = np.arange(200) % 5 == 4
    fields = {name: np.resize(values, (200, *values.shape[1:])) for name, values in fields.items()}
    rewards = np.zeros(200)
    rewards[ends] = last
    fields |= {"rewards": rewards, "terminals": ends, "timeouts": np.zeros(200, bool)}
    fields.pop("next_observations", None)
    config = DecisionConfig(dataset=str(write(fields)), backbone=BackboneConfig(d_model=8, n_layers=1))
    config.evaluation.episodes = 0
    for condition in ("return", "none"):
        config.condition = condition
        assert (DecisionTraining(config, print).episodes.lengths == 5).all()
        told = "a few returns are so large that the agent cannot tell the others apart" in capsys.readouterr().out
        assert told == (alike and condition == "return")


def test_without_a_terminal_each_line_of_progress_has_the_time_left():
    file = io.StringIO()
    progress = ShowProgress(20, Console(file=file, width=200))
    make_agent().learn(20, callback=[progress])
    *lines, last = file.getvalue().splitlines()
    assert len(lines) == 9
    assert all(re.search(r"  \d:\d\d:\d\d left$", line) for line in lines)
    assert not last.endswith("left")


@pytest.mark.parametrize(
    ("discrete", "given", "decay"),
    [(True, {}, 0.3), (False, {}, 1e-4), (True, {"weight_decay": 0.0}, 0.0), (True, {"optimizer": "lamb"}, 1e-4)],
)
def test_weights_decay_where_actions_are_discrete(discrete, given, decay):
    agent = make_agent(toy_episodes(4, discrete), **given)
    assert agent.optimizer.param_groups[0]["weight_decay"] == decay


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("dropout", r"dropout is an argument of the policy: policy_kwargs=dict\(dropout=…\)"),
        ("max_timestep", "max_timestep is not taken here, it is set by the agent's own argument timestep_embedding"),
        ("learning_rat", "learning_rat is no argument of DecisionAgent.*learning_rate"),
    ],
)
def test_a_name_that_is_no_hyperparameter_says_where_it_belongs(name, line):
    with pytest.raises(HyperparameterError, match=line):
        DecisionAgent(toy_episodes(3), device="cpu", **{name: 0.1})
