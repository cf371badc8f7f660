"""Statistics over seeds, against cases worked by hand and by enumeration."""

import itertools

import numpy as np
import pytest

from unroll.comparison.statistics import aggregate, iqm, mean, paired_difference, probability_of_improvement, profile


def test_the_interquartile_mean_leaves_out_a_quarter_rounded_down_at_either_end():
    assert iqm(np.array([100.0, 1, 2, 3, 4])) == 3  # of 2, 3, 4
    assert iqm(np.array([8.0, 7, 6, 5, 4, 3, 2, 100])) == 5.5  # of 4, 5, 6, 7
    assert iqm(np.array([1.0, 2, 9])) == 4  # nothing is left out
    np.testing.assert_allclose(iqm(np.array([[1.0, 2, 3, 4], [9, 0, 5, 1]])), [2.5, 3])


def test_the_interval_of_a_mean_is_that_of_all_ways_to_draw_the_seeds_again():
    seeds = np.array([0.0, 1, 5, 7])
    all_means = np.sort([np.mean(drawn) for drawn in itertools.product(seeds, repeat=4)])
    value, interval = aggregate(mean, [seeds])
    assert value == 3.25
    np.testing.assert_allclose(interval, np.quantile(all_means, [0.025, 0.975]), atol=0.3)
    assert interval == aggregate(mean, [seeds])[1]  # the same every time


def test_runs_are_drawn_within_their_task():
    tasks = [np.full(5, 10.0), np.full(5, 90.0)]
    assert aggregate(mean, tasks) == (50, (50, 50))  # drawn from all ten the mean would vary


def test_tasks_of_different_numbers_of_runs_weigh_the_same():
    tasks = [np.array([1.0, 2, 3]), np.array([10.0, 11, 12, 13])]
    value, (low, high) = aggregate(mean, tasks)
    assert value == pytest.approx((2 + 11.5) / 2)
    assert low < value < high
    # Of seven parts one is left out at either end: of 1, which has 7/6, a sixth is kept, and of 13 nothing, of 12 3/4.
    assert aggregate(iqm, tasks)[0] == pytest.approx((1 / 6 + (2 + 3) * 7 / 6 + (10 + 11) * 7 / 8 + 12 * 3 / 4) / 5)


def test_a_backbone_that_is_ahead_in_every_task_is_ahead_in_all_together():
    easy, hard = np.full(5, 90.0), np.full(5, 10.0)
    for statistic in (iqm, mean):
        ahead, _ = aggregate(statistic, [easy[:3] + 1, hard + 1])
        behind, _ = aggregate(statistic, [easy, hard[:3]])
        assert ahead == pytest.approx(51)
        assert behind == pytest.approx(50)


def test_equal_weights_change_nothing():
    drawn = np.random.default_rng(0).normal(size=(3, 10))
    np.testing.assert_allclose(iqm(drawn, np.full(10, 0.1)), iqm(drawn))


def test_no_interval_is_given_for_fewer_than_three_seeds():
    few, enough = np.array([1.0, 2]), np.array([1.0, 2, 3])
    assert aggregate(iqm, [enough, few])[1] is None
    assert probability_of_improvement([enough], [few])[1] is None
    assert profile([few], np.array([1.5]))[1] is None
    assert aggregate(iqm, [enough])[1] is not None


def test_the_probability_of_improvement_counts_pairs_and_ties_half():
    a, b = np.array([1.0, 2, 3]), np.array([2.0, 2, 0])
    assert probability_of_improvement([a], [b])[0] == pytest.approx(6 / 9)  # 1, then 0.5 + 0.5 + 1, then 3
    assert probability_of_improvement([b], [a])[0] == pytest.approx(3 / 9)
    assert probability_of_improvement([a, a], [b, a])[0] == pytest.approx((6 / 9 + 1 / 2) / 2)  # the mean over tasks
    assert probability_of_improvement([b + 10], [a]) == (1, (1, 1))


def test_pairs_show_a_difference_that_the_spread_of_the_seeds_hides():
    reference = np.array([0.0, 100, 50, 20])
    value, (low, high) = paired_difference([reference + 1], [reference])
    assert (value, low, high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert aggregate(mean, [reference + 1])[1][0] < aggregate(mean, [reference])[1][1]


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    share, band = profile([np.array([1.0, 2, 3, 4])], np.array([0.0, 1, 2.5, 4]))
    assert share.tolist() == [1, 0.75, 0.5, 0]
    assert band[0].tolist() == [1, 1]
    assert band[2, 0] <= 0.25
    assert band[2, 1] >= 0.75
