"""Control tasks without their velocities, which a policy with memory can work out from the positions.

Without memory PPO holds CartPole's pole for 40 of 500 steps (``benchmarks/results/online.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


class MaskVelocity(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Shows only the numbers at ``positions`` of a flat observation, [len(positions)]; their dtype stays.

    RL Baselines3 Zoo's wrapper of tasks with these names sets the velocities to zero; here they are absent.
    """

    def __init__(self, env: gym.Env, positions: Sequence[int]):
        gym.utils.RecordConstructorArgs.__init__(self, positions=positions)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self._positions = np.array(positions)
        dtype: Any = space.dtype
        self.observation_space = gym.spaces.Box(space.low[self._positions], space.high[self._positions], dtype=dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self._positions]


# Environment → what is left of its observation. MuJoCo's are qpos (without the place along the track), then qvel.
POSITIONS = {
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
    "Hopper-v5": tuple(range(5)),
    "HalfCheetah-v5": tuple(range(8)),
    "Walker2d-v5": tuple(range(8)),
}


def _without_velocity(env_id: str) -> dict[str, Any]:
    """Arguments of gym.register: the original's, with one wrapper more. Its vector form would not have the wrapper."""
    spec = gym.spec(env_id)
    return {
        "entry_point": spec.entry_point,
        "reward_threshold": spec.reward_threshold,
        "max_episode_steps": spec.max_episode_steps,
        "kwargs": spec.kwargs,
        "additional_wrappers": (MaskVelocity.wrapper_spec(positions=POSITIONS[env_id]),),
    }


# "CartPoleNoVel-v1" and so on; rewards, actions and the ends of episodes are the original's
NO_VELOCITY_TASKS = {env_id.replace("-", "NoVel-"): _without_velocity(env_id) for env_id in POSITIONS}
