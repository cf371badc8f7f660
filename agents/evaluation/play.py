"""Play seeded episodes in lock-step and score them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv

from unroll.envs.datasets.reference import normalized_score
from unroll.policies.backbones import State, select_rows


class Predictor(Protocol):
    """Whatever acts as Stable-Baselines3's algorithms do, with a state whose tensors have the batch first.

    One with the attribute ``takes_masks`` is also given ``action_masks``, where environments have that method.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, State]: ...


@dataclasses.dataclass
class Episode:
    """One episode to play, and then what came of it."""

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
    done takes the next episode, with its row of the memory reset; when none is left its row leaves the batch. An
    episode depends on its seed and target alone, but for the last bits of sums over batches of different size.
    MuJoCo's environments are stepped by as many threads as PyTorch uses: the simulator lets go of Python's lock.
    """
    waiting = deque(episodes)
    envs = [make_env() for _ in range(min(n_envs, len(episodes)))]
    rows = [(env, waiting.popleft()) for env in envs]
    observations = [_reset(env, episode) for env, episode in rows]
    state: Any = None
    start = np.ones(len(rows), bool)
    threads = torch.get_num_threads() if isinstance(envs[0].unwrapped, MujocoEnv) else 1
    with ThreadPoolExecutor(threads) as pool:
        while rows:
            masks = _masks(agent, [env for env, _ in rows])
            actions, state = agent.predict(_stack(observations), state, start, deterministic, **masks)
            start = np.zeros(len(rows), bool)
            kept = []
            for i, outcome in enumerate(_step([env for env, _ in rows], actions, pool, threads)):
                observations[i], reward, terminated, truncated, _ = outcome
                env, episode = rows[i]
                if on_step is not None:
                    on_step(env)
                episode.total += float(reward)
                episode.length += 1
                if terminated or truncated:
                    if not waiting:
                        continue
                    rows[i] = env, waiting.popleft()
                    observations[i], start[i] = _reset(*rows[i]), True
                kept.append(i)
            if len(kept) < len(rows):
                rows, observations, start = [rows[i] for i in kept], [observations[i] for i in kept], start[kept]
                if state is not None:  # an agent may do without
                    state = select_rows(state, torch.tensor(kept, dtype=torch.int64))
    for env in envs:
        env.close()


def summarize(returns: Sequence[float], reference: tuple[float, float] | None) -> dict[str, Any]:
    """Mean and 95 % bootstrap interval of the mean over episodes, raw and (None without a reference) normalised to 0
    … 100."""
    values = np.asarray(returns, np.float64)
    resampled = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    summary: dict[str, Any] = {"return_mean": values.mean(), "return_interval": [low, high], "normalized_score": None}
    if reference is not None:
        summary["normalized_score"] = normalized_score(values.mean(), reference)
        summary["normalized_interval"] = [normalized_score(bound, reference) for bound in (low, high)]
    return {key: _plain(value) for key, value in summary.items()}


def step_latency(agent: Predictor, env: gym.Env, warm: int, calls: int = 100) -> float:
    """Microseconds that one action takes in one environment: the median over ``calls`` steps that follow ``warm``
    others (which fill a window), without the environment's own."""
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


def _step(envs: list[gym.Env], actions: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> Iterator[Any]:
    """What each environment's ``step`` gives, in order; every thread steps a share of them."""

    def share(part: np.ndarray) -> list[Any]:
        return [envs[i].step(actions[i]) for i in part]

    if threads == 1 or len(envs) < 2 * threads:
        return iter(share(np.arange(len(envs))))
    return itertools.chain.from_iterable(pool.map(share, np.array_split(np.arange(len(envs)), threads)))


def _reset(env: gym.Env, episode: Episode) -> Any:
    options = None if episode.target_return is None else {"target_return": episode.target_return}
    return env.reset(seed=episode.seed, options=options)[0]


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [float(v) for v in value]
    return None if value is None else float(value)
