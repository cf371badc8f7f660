"""Play seeded episodes in lock-step, and sum up what they returned."""

from __future__ import annotations

import dataclasses
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
from unroll.envs.wrappers import own_copy
from unroll.errors import EnvError
from unroll.policies.backbones import State, select_rows

RESAMPLES = 2000  # of the bootstrap


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


def play(
    agent: Predictor,
    make_env: Callable[[], gym.Env],
    episodes: Sequence[Episode],
    n_envs: int = 100,
    deterministic: bool = True,
    on_step: Callable[[gym.Env], None] | None = None,
) -> None:
    """Play every episode from its own reset seed and fill in its total reward and length.

    ``n_envs`` environments of this process step together, so that the policy sees one batch. An environment that is
    done takes the next episode, and its row of the memory is reset; when none is left, its row leaves the batch. An
    episode depends on its seed and target alone, but for the last bits of sums over batches of different size.

    Raises:
        EnvError: an environment paid what is no number.
    """
    waiting = deque(episodes)
    envs = [make_env() for _ in range(min(n_envs, len(episodes)))]
    rows = [(env, waiting.popleft()) for env in envs]
    observations = [_reset(env, episode) for env, episode in rows]
    state: Any = None
    start = np.ones(len(rows), bool)

    # MuJoCo lets go of Python's lock, so its environments are stepped by as many threads as PyTorch uses.
    threads = torch.get_num_threads() if isinstance(envs[0].unwrapped, MujocoEnv) else 1
    with ThreadPoolExecutor(threads) as pool:
        while rows:
            # One action for each row.
            masks = _masks(agent, [env for env, _ in rows])
            actions, state = agent.predict(_stack(observations), state, start, deterministic, **masks)
            start = np.zeros(len(rows), bool)
            outcomes = _step([env for env, _ in rows], actions, pool, threads)

            kept = []
            for i, (observation, reward, terminated, truncated, _) in enumerate(outcomes):
                env, episode = rows[i]
                if on_step is not None:
                    on_step(env)
                episode.total += float(reward)
                episode.length += 1
                if not math.isfinite(episode.total):
                    name = env.spec.id if env.spec else type(env.unwrapped).__name__
                    where = f"in step {episode.length} of the episode of seed {episode.seed}"
                    raise EnvError(f"{name} paid {float(reward):g} {where}: its return is {episode.total:g}")
                if not (terminated or truncated):
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
    for env in envs:
        env.close()


def summarize(returns: Sequence[float], reference: tuple[float, float] | None) -> dict[str, Any]:
    """Compute the mean of the returns and its 95 % bootstrap interval over episodes.

    Both are raw and, with a reference, normalised to 0 … 100; without one ``normalized_score`` is None.
    """
    values = np.asarray(returns, np.float64)
    resampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    mean = values.mean()
    summary: dict[str, Any] = {
        "return_mean": float(mean),
        "return_interval": [float(low), float(high)],
        "normalized_score": None,
    }
    if reference is not None:
        summary["normalized_score"] = float(normalized_score(mean, reference))
        summary["normalized_interval"] = [float(normalized_score(bound, reference)) for bound in (low, high)]
    return summary


def step_latency(agent: Predictor, env: gym.Env, warm: int, calls: int = 100) -> float:
    """Measure the microseconds that one action takes in one environment, without the environment's own step.

    It is the median over ``calls`` steps that follow ``warm`` others, which fill a window.
    """
    observation = _stack([env.reset(seed=0)[0]])
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
    return {"action_masks": np.stack([env.get_wrapper_attr("action_masks")() for env in envs])}


def _step(envs: list[gym.Env], actions: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> list[Any]:
    """Step every environment and return what each ``step`` gives, in order; every thread steps a part of them."""

    def step_some(part: np.ndarray) -> list[Any]:
        found = []
        for i in part:
            observation, *rest = envs[i].step(actions[i])
            # A copy, because the next environment may write into the same array.
            found.append((own_copy(observation), *rest))
        return found

    every = np.arange(len(envs))
    if threads == 1 or len(envs) < 2 * threads:
        return step_some(every)
    outcomes: list[Any] = []
    for part in pool.map(step_some, np.array_split(every, threads)):
        outcomes += part
    return outcomes


def _reset(env: gym.Env, episode: Episode) -> Any:
    options = None if episode.target_return is None else {"target_return": episode.target_return}
    return own_copy(env.reset(seed=episode.seed, options=options)[0])


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)
