"""Numbers that an environment gives: what is not finite, or too large to learn from, is its fault and is named so."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from unroll.errors import EnvError

# The square of a larger number, which is the error of a value, overflows float32.
LARGEST = float(np.sqrt(np.finfo(np.float32).max))


def check_observations(
    observations: Any,
    env: VecEnv | None,
    step: int,
    normalizer: VecNormalize | None = None,
    rows: list[int] | None = None,
) -> None:
    """Raise EnvError where an environment gave an observation that is not finite.

    ``rows`` are the environments whose observations these are; None: all of them.
    """
    # One NaN makes the running statistics NaN, and with them what every environment shows.
    if normalizer is not None and normalizer.norm_obs:
        check_observations(getattr(normalizer, "old_obs", {}), env, step)  # a run that goes on has none yet

    parts = observations.items() if isinstance(observations, dict) else [("", observations)]
    for key, values in parts:
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        i = int(np.argmin(finite))
        where = name_of(env, i if rows is None else rows[i])
        if key:
            where = f"{key} of {where}"
        raise EnvError(f"the observation of {where} is not finite at step {step}")


def check_sizes(observations: Any, env: VecEnv | None, step: int) -> None:
    """Raise EnvError where an observation is so large that what a network makes of it is not finite."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    for values in parts:
        largest = np.abs(values.reshape(len(values), -1)).max(1)
        i = int(np.argmax(largest))
        if largest[i] > LARGEST:
            raise EnvError(
                f"the observation of {name_of(env, i)} holds {float(largest[i]):.3g} at step {step}, too large for a "
                "policy in float32: scale it (normalize_observation does)"
            )


def check_rewards(rewards: np.ndarray, env: VecEnv, step: int, normalizer: VecNormalize | None = None) -> None:
    """Raise EnvError where an environment gave a reward that is not finite."""
    if normalizer is not None:
        check_rewards(normalizer.old_reward, env, step)  # VecNormalize clips what is infinite
    finite = np.isfinite(rewards)
    if not finite.all():
        i = int(np.argmin(finite))
        raise EnvError(f"the reward of {name_of(env, i)} is {rewards[i]} at step {step}")


def check_returns(returns: np.ndarray, rewards: np.ndarray, env: VecEnv | None, step: int) -> None:
    """Raise EnvError where the rewards [T, N] of a rollout add up to more than float32 can learn from."""
    with np.errstate(invalid="ignore"):
        fits = np.abs(returns).max(0) <= LARGEST  # False for NaN
    if fits.all():
        return
    i = int(np.argmin(fits))
    largest = float(np.abs(rewards[:, i]).max())
    if largest * len(rewards) > LARGEST:  # else the values are at fault
        raise EnvError(
            f"the rewards of {name_of(env, i)} are up to {largest:.3g} at step {step}, too large to learn from in "
            "float32: scale them (normalize_reward does)"
        )


def name_of(env: VecEnv | None, i: int) -> str:
    """Name environment i of a vector."""
    if env is not None and env.has_attr("vector_name"):  # EpisodeMonitor's
        return str(env.get_attr("vector_name", i)[0])
    return f"environment {i}"
