from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unroll.envs.datasets.sampling import SequenceSampler

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
episode_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@many
@given(lengths=episode_lengths, seed=st.integers(0, 100))
def test_returns_and_returns_to_go_are_sums_over_the_episode(make_episodes, lengths, seed):
    episodes = make_episodes(lengths, seed)
    to_go, returns = [], []
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        rewards = episodes.rewards[start : start + length].astype(np.float64)
        returns.append(rewards.sum())
        to_go += [rewards[t:].sum() for t in range(length)]
    np.testing.assert_allclose(episodes.returns, returns, atol=1e-10)
    np.testing.assert_allclose(episodes.returns_to_go, to_go, atol=1e-10)


@many
@given(lengths=episode_lengths, data=st.data())
def test_selected_episodes_are_whole_and_in_the_order_asked_for(make_episodes, lengths, data):
    episodes = make_episodes(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    selected = episodes.select(np.array(chosen))
    rows = np.concatenate([np.arange(sum(lengths[:e]), sum(lengths[: e + 1])) for e in chosen])
    assert selected.observations[:, 0].tolist() == rows.tolist()
    assert selected.lengths.tolist() == [lengths[e] for e in chosen]
    np.testing.assert_array_equal(selected.actions, episodes.actions[rows])
    np.testing.assert_array_equal(selected.final_observations, episodes.final_observations[chosen])
    np.testing.assert_array_equal(selected.returns, episodes.returns[chosen])


@many
@given(lengths=episode_lengths, fraction=st.floats(0.01, 1))
def test_the_top_fraction_are_the_best_episodes_and_no_more_than_needed(make_episodes, lengths, fraction):
    episodes = make_episodes(lengths)
    top = episodes.top(fraction)
    n = len(top)
    assert sorted(top.returns) == sorted(np.sort(episodes.returns)[::-1][:n])
    assert top.n_steps >= fraction * episodes.n_steps - 1e-6
    worst = int(np.argmin(top.returns))
    assert top.n_steps - top.lengths[worst] < fraction * episodes.n_steps + 1e-6


def test_of_equal_returns_none_is_left_out_for_its_place_in_the_file(make_episodes):
    episodes = make_episodes([4, 5, 2, 3, 6])
    rewards = np.zeros(20, np.float32)
    rewards[[3, 8, 13, 19]] = 1, 1, 2, 1  # the returns 1, 1, 0, 2, 1
    episodes = dataclasses.replace(episodes, rewards=rewards)
    assert episodes.returns.tolist() == [1, 1, 0, 2, 1]
    assert episodes.top(0.15).lengths.tolist() == [3]
    assert episodes.top(0.2).lengths.tolist() == [3, 4, 5, 6]
    assert episodes.top(0.95) is episodes
    assert dataclasses.replace(episodes, rewards=np.zeros(20, np.float32)).top(0.1).n_steps == 20


@pytest.mark.parametrize(("fraction", "n"), [(0.07, 7), (0.14, 14), (0.55, 55), (0.071, 8), (0.1, 10), (1.0, 100)])
def test_a_share_takes_no_episode_by_a_rounding(make_episodes, fraction, n):
    assert len(make_episodes([200] * 100).top(fraction)) == n


@pytest.mark.parametrize("fraction", [0, -1, 1.5])
def test_impossible_fractions_are_refused(make_episodes, fraction):
    with pytest.raises(ValueError, match="top fraction"):
        make_episodes([3]).top(fraction)


@many
@given(lengths=episode_lengths, context=st.integers(1, 8), discrete=st.booleans(), step=st.integers(0, 5))
def test_windows_are_those_of_a_loop_over_samples(make_episodes, lengths, context, discrete, step):
    episodes = make_episodes(lengths, discrete=discrete)
    sampler = SequenceSampler(episodes, context)
    batch = sampler.sample(16, seed=3, step=step)
    n = episodes.n_steps
    drawn = np.random.Generator(np.random.Philox(key=3, counter=[0, step, 0, 0])).integers(n, size=16)
    nothing = 3 if discrete else np.zeros(2)
    starts = np.cumsum([0, *lengths])
    for b, row in enumerate(drawn):
        e = np.searchsorted(starts, row, side="right") - 1
        first = starts[e] if lengths[e] <= context else row
        end = starts[e + 1]
        valid = min(context, end - first)
        assert batch["mask"][b].tolist() == [True] * valid + [False] * (context - valid)
        for i in range(valid):
            t = first + i
            assert batch["observation"][b, i, 0] == t
            assert batch["timestep"][b, i] == t - starts[e]
            np.testing.assert_array_equal(batch["action"][b, i], episodes.actions[t])
            previous = nothing if t == starts[e] else episodes.actions[t - 1]
            np.testing.assert_array_equal(batch["previous_action"][b, i], previous)
            expected = episodes.rewards[t:end].astype(np.float64).sum()
            np.testing.assert_allclose(batch["return_to_go"][b, i], expected, atol=1e-5)


def test_an_episode_that_fits_into_the_window_is_taken_whole(make_episodes):
    batch = SequenceSampler(make_episodes([4, 5, 3]), 5).sample(64, seed=0, step=0)
    assert (batch["timestep"][:, 0] == 0).all()
    assert set(batch["mask"].sum(1).tolist()) == {3, 4, 5}


def test_longer_episodes_are_cut_and_may_run_into_their_end(make_episodes):
    batch = SequenceSampler(make_episodes([10]), 4).sample(256, seed=0, step=0)
    assert set(batch["timestep"][:, 0].tolist()) == set(range(10))
    assert batch["mask"].sum(1).min() == 1


def test_a_batch_is_a_function_of_seed_and_step(make_episodes):
    sampler = SequenceSampler(make_episodes([50, 60]), 5)
    again = SequenceSampler(make_episodes([50, 60]), 5)
    again.sample(8, seed=9, step=0)
    for key, value in sampler.sample(8, seed=1, step=7).items():
        assert torch.equal(value, again.sample(8, seed=1, step=7)[key])
    rows = [tuple(sampler.sample(8, s, t)["observation"][:, 0, 0].tolist()) for s, t in ((1, 7), (1, 8), (2, 7))]
    assert len(set(rows)) == 3


def test_before_the_first_action_of_an_episode_there_was_none(make_episodes):
    for discrete in (False, True):
        episodes = make_episodes([3, 1, 4], discrete=discrete)
        sampler = SequenceSampler(episodes, 4)
        firsts = sampler.windows(torch.as_tensor(episodes.starts))["previous_action"][:, 0]
        assert (firsts == (3 if discrete else 0)).all()
        if discrete:
            assert isinstance(episodes.action_space, gym.spaces.Discrete)
            assert sampler.sample(99, 0, 0)["previous_action"].max() == episodes.action_space.n


def test_batches_of_consecutive_updates_are_independent(make_episodes):
    """Counters that differ by one in Philox' first word would give the same numbers, shifted."""
    sampler = SequenceSampler(make_episodes([1000] * 20), 2)
    rows = [sampler.sample(64, 0, step)["observation"][:, 0, 0] for step in range(50)]
    assert len(torch.unique(torch.cat(rows))) > 2800  # of 3,200 draws from 20,000, some 2,960 are distinct


@many
@given(
    lengths=episode_lengths, context=st.integers(1, 8), seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**63 - 1)
)
def test_a_batch_is_the_same_whatever_was_drawn_before_it_and_holds_rows_of_one_episode_each(
    make_episodes, lengths, context, seed, step
):
    episodes = make_episodes(lengths)
    sampler = SequenceSampler(episodes, context)
    batch = sampler.sample(7, seed, step)
    for other in (step ^ 1, step // 2):
        sampler.sample(3, seed, other)
    again = sampler.sample(7, seed, step)
    episode_of = np.repeat(np.arange(len(lengths)), lengths)
    for key, values in batch.items():
        assert torch.equal(values, again[key])
        assert values.shape[:2] == (7, context)
    for rows, mask, timestep in zip(batch["observation"][..., 0], batch["mask"], batch["timestep"], strict=True):
        seen = rows[mask].long().numpy()
        assert len(set(episode_of[seen])) == 1
        assert seen.tolist() == list(range(seen[0], seen[0] + len(seen)))
        assert timestep[mask].tolist() == (seen - episodes.starts[episode_of[seen[0]]]).tolist()


@many
@given(lengths=episode_lengths, context=st.integers(1, 8), discrete=st.booleans())
def test_the_return_to_go_falls_by_the_reward_of_each_step(make_episodes, lengths, context, discrete):
    episodes = make_episodes(lengths, discrete=discrete)
    sampler = SequenceSampler(episodes, context)
    batch = sampler.windows(sampler.first)
    to_go, mask = batch["return_to_go"], batch["mask"]
    both = mask[:, 1:]
    rewards = torch.from_numpy(episodes.rewards)[batch["observation"][..., 0].long().clamp_max(episodes.n_steps - 1)]
    torch.testing.assert_close((to_go[:, :-1] - to_go[:, 1:])[both], rewards[:, :-1][both], atol=1e-5, rtol=0)


def test_windows_begin_at_every_step_equally_often_so_that_episodes_count_by_their_length(make_episodes):
    lengths, context, draws = [30, 5, 15], 3, 50_000
    sampler = SequenceSampler(make_episodes(lengths), context)
    rows = torch.cat([sampler.sample(draws // 50, seed=0, step=step)["observation"][:, 0, 0] for step in range(50)])
    counts = torch.bincount(rows.long(), minlength=50).double()
    expected = draws / 50
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 94  # 49 degrees of freedom: more in one of 10,000 samplers that are right
