"""Play seeded episodes in lock-step, and sum up what they returned."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv

from unroll.envs.datasets.reference import normalized_score
from unroll.envs.faults import after, env_fault
from unroll.envs.observed import Misfit, check_flags, check_observation, check_reset
from unroll.envs.wrappers import name_of, own_copy
from unroll.errors import EnvError, UserError
from unroll.policies.backbones import State, select_rows
from unroll.policies.masking import NO_METHOD, check_masks

log = logging.getLogger(__name__)

RESAMPLES = 2000  # of the bootstrap
N_ENVS = 100  # that are open at once
MAX_STEPS = 100_000  # of an episode; Atari's longest have 27,000


class Predictor(Protocol):
    """Acts as Stable-Baselines3's algorithms do, with a state whose tensors have the batch first.

    A predictor with the attribute ``takes_masks`` is also given ``action_masks``, where environments have that method.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, State]: ...


@dataclasses.dataclass
class Episode:
    """An episode to play, and then what came of it."""

    seed: int
    target_return: float | None = None
    total: float = 0.0
    length: int = 0
    cut: bool = False
    """it did not end by itself within the most steps"""

    def is_over(self, reward: float, ended: bool, max_steps: int) -> bool:
        """Count a step, and say whether it was the last one: the episode ended, or has as many as it may."""
        self.total += reward
        self.length += 1
        self.cut = not ended and self.length >= max_steps
        return ended or self.cut


Row = tuple[gym.Env, Episode]  # an environment and what it plays
Outcome = tuple[Any, float, bool]  # observation, reward, whether the episode is over


def play(
    agent: Predictor,
    make_env: Callable[[], gym.Env],
    episodes: Sequence[Episode],
    n_envs: int = N_ENVS,
    deterministic: bool = True,
    on_step: Callable[[gym.Env], None] | None = None,
    max_steps: int = MAX_STEPS,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Play every episode from its own reset seed and fill in its total reward and length.

    At most ``n_envs`` environments of this process step together, so that the policy sees one batch. An environment
    that is done takes the next episode, and its row of the memory is reset; when none is left, its row leaves the
    batch. An episode depends on its seed and target alone, but for the last bits of sums over batches of different
    size. One that goes on after ``max_steps`` is cut there. ``check()`` is called before every step, and may raise.

    Raises:
        EnvError: an environment cannot be made or played in, or it or the agent gives a number that is not finite.
    """
    waiting = deque(episodes)
    with contextlib.ExitStack() as stack:
        envs = open_envs(make_env, min(n_envs, len(episodes)), stack)
        rows = [(env, waiting.popleft()) for env in envs]
        observations = [_reset(env, episode) for env, episode in rows]
        state: Any = None
        start = np.ones(len(rows), bool)

        # MuJoCo lets go of Python's lock, so its environments are stepped by as many threads as PyTorch uses.
        threads = torch.get_num_threads() if isinstance(envs[0].unwrapped, MujocoEnv) else 1
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        while rows:
            check()
            actions, state = _act(agent, rows, observations, state, start, deterministic)
            start = np.zeros(len(rows), bool)
            outcomes = _step(rows, actions, pool, threads)

            kept = []
            for i, (observation, reward, over) in enumerate(outcomes):
                env, episode = rows[i]
                if on_step is not None:
                    on_step(env)
                if not episode.is_over(reward, over, max_steps):
                    observations[i] = observation
                    kept.append(i)
                elif waiting:
                    # The environment takes the next episode, which begins with an empty memory.
                    rows[i] = (env, waiting.popleft())
                    observations[i] = _reset(*rows[i])
                    start[i] = True
                    kept.append(i)

            # Rows without an episode leave the batch.
            if len(kept) < len(rows):
                rows = [rows[i] for i in kept]
                observations = [observations[i] for i in kept]
                start = start[kept]
                if state is not None:  # an agent may do without
                    state = select_rows(state, torch.tensor(kept, dtype=torch.int64))


def _act(
    agent: Predictor, rows: list[Row], observations: list[Any], state: Any, start: np.ndarray, deterministic: bool
) -> tuple[np.ndarray, Any]:
    """Choose one action for each row, and return the next state as well."""
    shown = _stack(observations)
    _check_finite(shown, rows)
    masks = _masks(agent, [env for env, _ in rows])
    actions, state = agent.predict(shown, state, start, deterministic, **masks)
    _check_actions(actions, rows)
    return actions, state


def open_envs(make_env: Callable[[], gym.Env], n: int, stack: contextlib.ExitStack) -> list[gym.Env]:
    """Make ``n`` environments, which ``stack`` closes. Where there can be fewer, the error says how many."""
    envs: list[gym.Env] = []
    while len(envs) < n:
        try:
            envs.append(make_env())
        except EnvError as error:
            if not envs:
                raise
            fault = EnvError(
                f"{error}; {len(envs)} of {n} could be open at once for an evaluation, and evaluation.n_envs "
                f"{len(envs)} opens no more"
            )
            fault.details = error.details
            raise fault from error
        stack.callback(_close, envs[-1])
    return envs


def _close(env: gym.Env) -> None:
    """Close an environment. What has been played is not lost where that fails."""
    try:
        env.close()
    except Exception as error:
        log.warning("%s", env_fault(error, name_of(env), "when it was closed"))


def summarize(returns: Sequence[float], reference: tuple[float, float] | None) -> dict[str, Any]:
    """Compute the mean of the returns and its 95 % bootstrap interval over episodes, None for a single one.

    Both are raw and, with a reference, normalised to 0 … 100; without one ``normalized_score`` is None.
    """
    values = np.asarray(returns, np.float64)
    mean = values.mean()
    interval = None  # one episode says nothing of others
    if len(values) > 1:
        resampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
        interval = np.quantile(resampled, [0.025, 0.975]).tolist()
    summary: dict[str, Any] = {"return_mean": float(mean), "return_interval": interval, "normalized_score": None}
    if reference is not None:
        summary["normalized_score"] = float(normalized_score(mean, reference))
        summary["normalized_interval"] = interval and [float(normalized_score(bound, reference)) for bound in interval]
    return summary


def step_latency(
    agent: Predictor, env: gym.Env, warm: int, calls: int = 100, target_return: float | None = None
) -> float:
    """Measure the microseconds that one action takes in one environment, without the environment's own step.

    It is the median over ``calls`` steps that follow ``warm`` others, which fill a window.
    """
    observation = _stack([_reset(env, Episode(0, target_return))])
    masks = _masks(agent, [env])
    _, state = agent.predict(observation, None, np.ones(1, bool), **masks)
    for _ in range(warm):
        _, state = agent.predict(observation, state, np.zeros(1, bool), **masks)
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        _, state = agent.predict(observation, state, np.zeros(1, bool), **masks)
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def _masks(agent: Predictor, envs: list[gym.Env]) -> dict[str, Any]:
    """What the environments allow now, as a keyword argument of ``predict``; none where nothing is forbidden."""
    if not getattr(agent, "takes_masks", False) or not envs[0].has_wrapper_attr("action_masks"):
        return {}
    given = []
    for env in envs:
        ask = env.get_wrapper_attr("action_masks")
        if not callable(ask):
            raise EnvError(NO_METHOD)
        try:
            given.append(ask())
        except UserError:
            raise
        except Exception as error:
            raise env_fault(error, name_of(env), "in action_masks() of an evaluation") from error
    return {"action_masks": check_masks(given, envs[0].action_space, len(envs))}


def _step(rows: list[Row], actions: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> list[Outcome]:
    """Step every environment and return what comes of it, in order; every thread steps a part of them."""

    def step_some(part: np.ndarray) -> list[Outcome]:
        return [_step_one(rows[i], actions[i]) for i in part]

    every = np.arange(len(rows))
    if threads == 1 or len(rows) < 2 * threads:
        return step_some(every)
    outcomes: list[Outcome] = []
    for part in pool.map(step_some, np.array_split(every, threads)):
        outcomes += part
    return outcomes


def _step_one(row: Row, action: Any) -> Outcome:
    """Step an environment and return the observation, the reward and whether the episode is over."""
    env, episode = row
    try:
        observation, reward, terminated, truncated, _ = env.step(action)
        check_flags(terminated, truncated)
        check_observation(env.observation_space, observation)
        paid = float(reward)
    except Misfit as error:
        raise EnvError(f"{name_of(env)}: {error}, {_where(episode)}, {after(action)}") from None
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise env_fault(error, name_of(env), f"{_where(episode)}, {after(action)}") from error
    if not math.isfinite(paid):
        raise EnvError(f"{name_of(env)}: the reward is {paid} {_where(episode)}, {after(action)}")
    # A copy, because the next environment may write into the same array.
    return own_copy(observation), paid, bool(terminated or truncated)


def _where(episode: Episode) -> str:
    """Say which step of which episode comes next."""
    return f"in step {episode.length + 1} of the evaluation's episode with seed {episode.seed}"


def _check_finite(shown: Any, rows: list[Row]) -> None:
    """Raise EnvError where an environment shows a number that is not finite."""
    for part in shown.values() if isinstance(shown, dict) else [shown]:
        if part.dtype.kind != "f" or np.isfinite(part).all():
            continue
        finite = np.isfinite(part).reshape(len(part), -1).all(1)
        env, episode = rows[int(np.argmin(finite))]
        raise EnvError(f"{name_of(env)}: the observation is not finite {_where(episode)}")


def _check_actions(actions: np.ndarray, rows: list[Row]) -> None:
    """Raise EnvError where an action is not finite: nothing that an environment makes of it means anything."""
    actions = np.asarray(actions)
    if actions.dtype.kind == "f" and not np.isfinite(actions).all():
        finite = np.isfinite(actions).reshape(len(actions), -1).all(1)
        i = int(np.argmin(finite))
        env, episode = rows[i]
        raise EnvError(f"{name_of(env)}: the agent's action {actions[i]} is not finite {_where(episode)}")


def _reset(env: gym.Env, episode: Episode) -> Any:
    options = None if episode.target_return is None else {"target_return": episode.target_return}
    when = f"at the reset with seed {episode.seed} of an evaluation"
    try:
        observation, _ = check_reset(env.reset(seed=episode.seed, options=options))
        check_observation(env.observation_space, observation)
    except Misfit as error:
        raise EnvError(f"{name_of(env)}: {error}, {when}") from None
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise env_fault(error, name_of(env), when) from error
    return own_copy(observation)


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)
