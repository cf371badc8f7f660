"""Behaviour from a dataset: what the policy of RecurrentPPO learns from recorded episodes before it plays."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor

from unroll.agents.algorithm import Tell
from unroll.agents.common.guards import check_finite, memory_guard
from unroll.agents.common.optim import set_learning_rate
from unroll.agents.ppo.anchor import Anchor
from unroll.agents.ppo.gradients import clip_gradients, parameters_of
from unroll.agents.ppo.step import statistics_of
from unroll.envs.datasets.doctor import check_fit
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import parts_in_words
from unroll.envs.datasets.sampling import Batch, make_sampler
from unroll.envs.spaces import in_words
from unroll.errors import DatasetError, EnvError, HyperparameterError
from unroll.policies.actor_critic import RecurrentActorCriticPolicy

if TYPE_CHECKING:
    from unroll.agents.ppo.agent import RecurrentPPO

LEAST_DEVIATION = 0.05  # of continuous actions, as a share of half their range: PPO has to explore from there
DEVIATION_SHARE = 0.01  # by which it follows a batch, once there were a hundred
FOR_GOOD = 1e12  # steps that the statistics of observations count for: those of PPO move them no more
MISSING = 0.05  # the share of a discounted return that may lie behind the end of a recording


def pretrain(
    agent: RecurrentPPO,
    episodes: Episodes,
    updates: int,
    *,
    batch_size: int = 64,
    context: int | None = None,
    learning_rate: float = 1e-3,
    top_fraction: float = 1.0,
    critic_first: int = 10_000,
    kl_coef: float = 0.2,
    kl_steps: int = 1_000_000,
    log_interval: int = 100,
    tell: Tell = lambda line: None,
) -> None:
    """Clone the behaviour of recorded episodes, and let the critic learn what it was worth.

    Every window of the data begins with an empty memory. VecNormalize gets the statistics of the data, and PPO goes on
    with them; those of observations change no more. Nothing of PyTorch's random numbers is drawn.
    ``agent.interrupted`` ends it in the middle.

    Args:
        batch_size: windows of a batch.
        context: steps of a window; None: as many as the sequences have that PPO learns from. An episode that is no
            longer is learned from as a whole.
        learning_rate: of the agent's optimizer at the first update; it falls to 0. PPO begins without its moments.
        top_fraction: learn from the best episodes alone, until they make up this share of the steps.
        critic_first: environment steps of PPO in which only the critic learns.
        kl_coef: weight of KL(π_pretrained ‖ π) in PPO's loss, which fades to 0.
        kl_steps: environment steps after which it is 0.
        log_interval: updates between two points of ``pretrain/…``. They are logged before the step that PPO begins at:
            the first of 3000 updates at -2999.
        tell: takes a line for every tenth of the updates.

    Raises:
        DatasetError, EnvError, HyperparameterError: see ``check_episodes``; no such share of the episodes.
        TrainingError: a loss is not finite.
    """
    episodes = check_episodes(agent, episodes).top(top_fraction)
    fit_statistics(agent, episodes)
    values = value_targets(agent, episodes)
    if np.isnan(values).all():
        tell("note: every episode is cut off too early to say what it is worth; the critic learns nothing of the data")
    else:
        known = torch.as_tensor(values[~np.isnan(values)]).to(agent.device)
        agent.policy.value_scale.update(known, known, agent.policy.value_net)
    context = min(context or agent.steps_of_sequence, int(episodes.lengths.max()))
    sizes = SimpleNamespace(sized_by=("batch_size", "context"), batch_size=batch_size, context=context)

    with memory_guard(sizes):
        sampler = make_sampler(episodes, context, agent.device, {"value": values})
        optimizer = agent.policy.optimizer
        optimizer.state.clear()
        agent.policy.set_training_mode(True)
        losses: list[Tensor] = []
        for update in range(1, updates + 1):
            if agent.interrupted:
                return
            set_learning_rate(optimizer, learning_rate * (1 - (update - 1) / updates))
            batch = sampler.sample(batch_size, agent.seed or 0, update - 1)
            losses.append(_update(agent, batch, update))
            tenth = update % max(1, updates // 10) == 0
            if tenth or update % log_interval == 0 or update == updates:
                means = torch.stack(losses).mean(0).tolist()
                losses = []
                agent.logger.record("pretrain/loss", means[0])
                agent.logger.record("pretrain/value_loss", means[1])
                agent.logger.dump(agent.num_timesteps + update - updates)
            if tenth:
                tell(f"pretraining {update}/{updates}  loss {means[0]:.4f}  value loss {means[1]:.4g}")

    # Moments of these losses would scale the first steps of PPO's.
    optimizer.state.clear()
    agent.anchor = Anchor(agent.policy, critic_first, kl_coef, kl_steps)


def check_episodes(agent: RecurrentPPO, episodes: Episodes) -> Episodes:
    """Return the episodes with their choices counted as the agent's environment counts them.

    Raises:
        DatasetError: they cannot be learned from, or observe or act in other spaces than the agent.
        EnvError: the agent observes images, or anything else that is no row of numbers.
        HyperparameterError: its actions have noise of their own (gSDE).
    """
    space = agent.observation_space
    actions = agent.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or is_image_space(space):
        raise EnvError(
            f"pretraining needs observations of one row of numbers; the environment observes {in_words(space)}"
        )
    if agent.use_sde:
        raise HyperparameterError("pretraining knows no state-dependent exploration: use_sde must be false")

    check_fit(episodes)
    episodes = episodes.counted_as(actions)
    own = episodes.action_space
    same = own == actions
    if isinstance(actions, spaces.Box) and isinstance(own, spaces.Box):
        same = own.low.size == actions.low.size  # bounds may differ, as a dataset's are often guessed
    refuse_parts(episodes)
    if not same or space.shape != (episodes.observation_dim,):
        raise DatasetError(
            f"{episodes.name} observes {episodes.observation_dim} numbers and takes actions of {in_words(own)}; the "
            f"environment observes {in_words(space)} and takes actions of {in_words(actions)}"
        )
    return episodes


def refuse_parts(episodes: Episodes) -> None:
    """Raise DatasetError for episodes of images."""
    if episodes.parts is not None:
        raise DatasetError(
            f"{episodes.name} observes {parts_in_words(episodes.parts)}; pretraining needs rows of numbers"
        )


def as_observed(episodes: Episodes, space: spaces.Space, previous_action: bool, previous_reward: bool) -> Episodes:
    """Return the episodes with the observations that ``make_env`` with these arguments would have shown.

    ``space`` is that of the agent's actions: an environment takes and shows what lies within its bounds.
    """
    if not (previous_action or previous_reward):
        return episodes
    refuse_parts(episodes)
    starts = episodes.starts
    parts = [np.asarray(episodes.observations)]
    if previous_action:
        actions = np.roll(np.asarray(episodes.actions), 1, 0)
        if isinstance(space, spaces.Box) and actions.shape[1:] == (space.low.size,):
            actions = np.clip(actions, space.low.reshape(-1), space.high.reshape(-1))
            if space.dtype.kind in "iu":
                actions = np.rint(actions)
        actions[starts] = 0
        if isinstance(episodes.action_space, spaces.Discrete):
            none = int(episodes.action_space.n)
            actions[starts] = none
            actions = np.eye(none + 1, dtype=np.float32)[actions]
        parts.append(actions)
    if previous_reward:
        rewards = np.roll(np.asarray(episodes.rewards), 1)
        rewards[starts] = 0
        parts.append(rewards[:, None])
    observations = np.concatenate(parts, 1, dtype=np.float32)
    return dataclasses.replace(episodes, observations=observations, final_observations=None, known_statistics=None)


def fit_statistics(agent: RecurrentPPO, episodes: Episodes) -> None:
    """Give VecNormalize, if there is one, the statistics that it would have if it had seen the episodes alone.

    Those of observations stay as they are. The deviation of the returns goes on to be what PPO sees.
    """
    normalizer = agent.get_vec_normalize_env()
    if normalizer is None:
        return
    if normalizer.norm_obs:
        assert isinstance(normalizer.obs_rms, RunningMeanStd)
        known = episodes.statistics()
        # They stay: under others the policy would do other things, and so would the copy that it is tied to.
        _fit(normalizer.obs_rms, known.mean, known.std**2, FOR_GOOD)
    returns = discounted_sums(episodes.rewards, episodes.lengths, normalizer.gamma)
    _fit(normalizer.ret_rms, returns.mean(), returns.var(), episodes.n_steps)
    if agent._last_obs is not None:
        # The environments have begun already, and showed this under the statistics of before.
        agent._last_obs = normalizer.normalize_obs(normalizer.get_original_obs())


def _fit(running: RunningMeanStd, mean: np.ndarray, variance: np.ndarray, count: float) -> None:
    running.mean = mean
    running.var = variance
    running.count = float(count)


def discounted_sums(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Sum the rewards of each episode up to each step, earlier ones discounted: R_t = r_t + γ·R_{t-1}, [N] float64."""
    sums = np.array(rewards, np.float64)
    starts = np.cumsum(lengths) - lengths
    for t in range(1, int(lengths.max())):
        rows = starts[lengths > t] + t
        sums[rows] += gamma * sums[rows - 1]
    return sums


def value_targets(agent: RecurrentPPO, episodes: Episodes) -> np.ndarray:
    """Compute the discounted return from each step on, [N] float32, in the units of the rewards that PPO sees.

    It is NaN, and no value is learned, where an episode that did not terminate ends so soon that more than MISSING of
    the return may be missing. The critic itself could stand for that, but at first it knows nothing.
    """
    rewards = np.asarray(episodes.rewards)
    normalizer = agent.get_vec_normalize_env()
    if normalizer is not None:
        rewards = normalizer.normalize_reward(rewards)
    lengths = episodes.lengths
    returns = discounted_sums(rewards[::-1], lengths[::-1], agent.gamma)[::-1]

    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(episodes.n_steps)  # this step included
    cut = np.repeat(~episodes.terminated, lengths) & (agent.gamma**left > MISSING)
    return np.where(cut, np.nan, returns).astype(np.float32)


def pretrain_loss(
    policy: RecurrentActorCriticPolicy, observations: Tensor, actions: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the means of -log π(a|s, memory) and of (V - value)² over the steps [B, T] that are no padding.

    ``values`` are NaN where none is known. Windows begin with an empty memory.
    """
    state = policy.initial_state(len(mask))
    predicted, log_probs, _ = policy.evaluate_sequences(observations, actions, state, torch.zeros_like(mask))
    loss = -torch.where(mask, log_probs, 0.0).sum() / mask.sum()
    known = mask & values.isfinite()
    error = torch.where(known, predicted - values, 0.0)
    return loss, error.square().sum() / known.sum().clamp(min=1)


def fit_deviation(policy: RecurrentActorCriticPolicy, actions: Tensor, mask: Tensor, share: float) -> None:
    """Move the variances of continuous actions by ``share`` towards the mean squared errors of a batch.

    These are the variances under which the batch is likeliest. Adam would move their logarithms by no more than its
    learning rate. They are bounded below, so that PPO can explore from there whatever the data are.
    """
    space = policy.action_space
    assert isinstance(space, spaces.Box)
    inner: Any = policy.action_dist.distribution  # of the last loss
    error = (actions.flatten(0, 1) - inner.mean.detach())[mask.flatten()].square().mean(0)
    half = (torch.from_numpy(space.high).double() - torch.from_numpy(space.low).double()).flatten() / 2
    half = torch.where(half.isfinite() & (half > 0), half, 1.0)
    with torch.no_grad():
        log_std = (2 * policy.log_std).exp().lerp(error, share).log() / 2
        policy.log_std.copy_(log_std.clamp(min=(LEAST_DEVIATION * half).log().to(log_std)))


def _update(agent: RecurrentPPO, batch: Batch, update: int) -> Tensor:
    """Make one update, counted from 1, and return its two losses."""
    policy = agent.policy

    # The observations as VecNormalize would show them, and the actions as the environment would take them.
    observations = batch["observation"]
    normalizer = agent.get_vec_normalize_env()
    for mean, deviation in statistics_of(normalizer, [""]).values():
        assert normalizer is not None
        scaled = (observations.double() - mean.to(agent.device)) / deviation.to(agent.device)
        observations = scaled.clamp(-normalizer.clip_obs, normalizer.clip_obs).float()
    actions = batch["action"]
    space = policy.action_space
    if isinstance(space, spaces.Box):
        low = torch.from_numpy(space.low).flatten().to(actions)
        high = torch.from_numpy(space.high).flatten().to(actions)
        actions = actions.clamp(low, high)

    loss, value_loss = pretrain_loss(policy, observations, actions, batch["value"], batch["mask"])
    policy.optimizer.zero_grad()
    (loss + agent.vf_coef * value_loss / policy.value_scale.square).backward()
    if isinstance(space, spaces.Box):
        policy.log_std.grad = None
        fit_deviation(policy, actions, batch["mask"], max(1 / update, DEVIATION_SHARE))
    norm = clip_gradients(parameters_of(policy), agent.max_grad_norm)
    losses = torch.stack([loss, value_loss, norm]).detach()
    named = dict(zip(("pretrain/loss", "pretrain/value_loss", "the gradient's norm"), losses.tolist(), strict=True))
    check_finite(named, f"at update {update} of the pretraining", policy.optimizer.param_groups[0]["lr"])
    policy.optimizer.step()
    return losses[:2]
