"""Mixtures of actions: their density, what a bound hides of it, what is drawn, and which behaviours they keep apart."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from unroll.errors import BackboneError
from unroll.policies.actions import BoxAction, MixtureAction, make_action
from unroll.policies.decision import DecisionPolicy

BOX = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))


def mixture(modes=3):
    torch.manual_seed(0)
    action = make_action(BOX, 4, modes)
    torch.nn.init.normal_(action.log_deviation)
    return action, action.predict(torch.randn(5, 7, 4))


def test_the_error_is_the_density_that_torch_computes():
    action, prediction = mixture()
    logits, means = prediction[..., :3], prediction[..., 3:].unflatten(-1, (3, 2))
    expected = MixtureSameFamily(
        Categorical(logits=logits), Independent(Normal(means, action.deviation.expand_as(means)), 1)
    )
    done = torch.rand(5, 7, 2) * torch.tensor([4.0, 10.0]) + torch.tensor([-1.0, 0.0])
    constant = 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(
        action.error(prediction, done) + constant, -expected.log_prob(action.encode(done)) / 2, rtol=1e-5, atol=1e-5
    )


def test_of_an_action_at_a_bound_all_that_lies_beyond_is_likely():
    action, prediction = mixture()
    logits, means = prediction[..., :3], prediction[..., 3:].unflatten(-1, (3, 2))
    drawn = Normal(means, action.deviation)
    done = torch.tensor([-1.0, 10.0])  # the least of the first number, the most of the second
    log_p = drawn.cdf(torch.tensor(-1.0))[..., 0].log() + (1 - drawn.cdf(torch.tensor(1.0)))[..., 1].log()
    expected = -torch.logsumexp(logits.log_softmax(-1) + log_p, -1) / 2
    torch.testing.assert_close(action.error(prediction, done.expand(5, 7, 2)), expected, rtol=1e-4, atol=1e-4)
    nearly = done + torch.tensor([1e-6, -1e-5])  # rounding
    torch.testing.assert_close(action.error(prediction, nearly.expand(5, 7, 2)), expected, rtol=1e-4, atol=1e-4)

    far = torch.full((3 + 6,), 1e4, requires_grad=True)  # no probability is too small to learn from
    error = action.error(far, done)
    error.backward()
    assert torch.isfinite(error)
    assert torch.isfinite(far.grad).all()
    assert far.grad.abs().max() > 0


@pytest.mark.parametrize(("modes", "finds_it"), [(0, False), (1, True), (5, True)])
def test_what_an_agent_meant_is_found_behind_the_bound_that_cut_it(modes, finds_it):
    """An agent that explores means 0.9 of the way to a bound, and 43 % of what it draws is cut there."""
    torch.manual_seed(0)
    action = make_action(BOX, 4, modes)
    optimizer = torch.optim.Adam(action.parameters(), 0.02)
    meant = torch.tensor([0.9, -0.9])
    for _ in range(400):
        done = action.center + action.scale * (meant + 0.6 * torch.randn(128, 2)).clamp(-1, 1)
        optimizer.zero_grad()
        action.error(action.predict(torch.ones(128, 4)), done).mean().backward()
        optimizer.step()
    with torch.no_grad():
        prediction = action.predict(torch.ones(1, 4))
        chosen = action.encode(action.choose(prediction, deterministic=True))[0]
        again = action.encode(action.choose(prediction.expand(4000, -1), deterministic=False))
    assert bool(((chosen - meant).abs() < 0.1).all()) is finds_it
    if finds_it:  # it draws as the agent did
        torch.testing.assert_close((again == meant.sign()).float().mean(0), torch.full((2,), 0.43), rtol=0, atol=0.05)


def test_the_likeliest_action_is_a_mean_and_the_others_are_drawn_within_the_bounds():
    action, prediction = mixture()
    chosen = action.choose(prediction, deterministic=True)
    heaviest = prediction[..., :3].argmax(-1)
    means = prediction[..., 3:].unflatten(-1, (3, 2))
    assert (means.abs() > 1).any()
    for b, t in ((0, 0), (4, 6)):
        expected = action.center + action.scale * means[b, t, heaviest[b, t]].clamp(-1, 1)
        torch.testing.assert_close(chosen[b, t], expected)

    # drawn: as often as the weights say, and as far around the means as the deviations say
    with torch.no_grad():
        action.log_deviation.fill_(-9.0)
    within = prediction[0, 0] / 2
    means = within[3:].view(3, 2)
    assert (means.abs() < 0.8).all()
    many = within.expand(4000, -1)
    drawn = action.choose(many, deterministic=False)
    assert (drawn >= torch.from_numpy(BOX.low)).all()
    assert (drawn <= torch.from_numpy(BOX.high)).all()
    nearest = (action.encode(drawn)[:, None] - means).square().sum(-1).argmin(-1)
    shares = torch.bincount(nearest, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, within[:3].softmax(-1), rtol=0, atol=0.05)
    spread = (action.encode(drawn) - means[nearest]).std(0)
    torch.testing.assert_close(spread, action.deviation[0], rtol=0.15, atol=0)


@pytest.mark.parametrize(("modes", "kept_apart"), [(0, False), (1, False), (2, True), (5, True)])
def test_two_behaviours_are_kept_apart_by_a_mixture_alone(modes, kept_apart):
    """Half of the actions are near one bound and half near the other; between them nobody ever acts."""
    torch.manual_seed(0)
    action = make_action(BOX, 4, modes)
    optimizer = torch.optim.Adam(action.parameters(), 0.02)
    for _ in range(300):
        side = torch.where(torch.rand(64, 1) < 0.5, -0.8, 0.8)
        done = action.center + action.scale * (side + 0.05 * torch.randn(64, 2)).clamp(-1, 1)
        optimizer.zero_grad()
        action.error(action.predict(torch.ones(64, 4)), done).mean().backward()
        optimizer.step()
    with torch.no_grad():
        chosen = action.encode(action.choose(action.predict(torch.ones(1, 4)), deterministic=True))[0]
    assert bool((chosen.abs() > 0.7).all()) is kept_apart
    assert bool((chosen.abs() < 0.3).all()) is not kept_apart
    if kept_apart:
        assert chosen[0].sign() == chosen[1].sign()  # one of the two behaviours, in both dimensions


def test_without_modes_there_is_no_distribution_and_discrete_actions_have_one_anyway():
    assert type(make_action(BOX, 4)) is BoxAction
    assert type(make_action(BOX, 4, 1)) is MixtureAction
    plain, mixed = (DecisionPolicy(3, gym.spaces.Discrete(4), d_model=8, action_modes=modes) for modes in (0, 5))
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in mixed.named_parameters()}
    with pytest.raises(BackboneError, match="action_modes must be from 0"):
        DecisionPolicy(3, BOX, d_model=8, action_modes=-1)


def test_bfloat16_features_lose_no_digits_of_the_density():
    action, prediction = mixture()
    done = torch.zeros(5, 7, 2)
    assert action.error(prediction.bfloat16(), done).dtype == torch.float32
    assert action.choose(prediction.bfloat16(), True).dtype == torch.float32
