"""Tasks that need memory: a T-maze, cards to be repeated later, and control without velocities.

The maze and the cards cannot be solved without memory. Their episodes end by themselves
(``terminated``): the remaining return is 0 then, and there is nothing to bootstrap from.

In the control tasks a policy with memory can work out the velocities from the positions. Without
memory PPO holds CartPole's pole for 40 of 500 steps (``benchmarks/results/online.md``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


class TMaze(gym.Env):
    """A corridor with a cue that is shown only at its start. It says which way to go at the end.

    Observation: ``[at the junction: 0 or 1, cue: +1 up, −1 down, 0 afterwards]``, float32. After
    the last step the second number is the side that was chosen, as published. Action: 0 right, 1
    up, 2 left, 3 down; a wall stops.

    An episode has ``length + 1`` steps. The last one pays 1 on the right side and 0 elsewhere. Each
    of the others costs ``1 / length`` if the agent is behind one that only went right. So the
    return lies in [−1, 1] and is 1 for the right choice at the end of a straight walk. No policy
    without memory gets more than 0.5 on average.

    The passive T-maze of Ni, Ma, Eysenbach and Bacon 2023 (arXiv 2307.03864), after Bakker 2001,
    "Reinforcement learning with long short-term memory"; observations, actions and rewards are
    those of the former's code.
    """

    def __init__(self, length: int = 10):
        if length < 1:
            raise ValueError(f"length is {length}, a corridor has at least one step")
        self.length = length
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = 0
        self._t = 0
        self._goal = 1 if self.np_random.random() < 0.5 else -1
        return np.array([0, self._goal], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._t += 1
        side = 0  # no choice yet
        if action == 0:
            self._x = min(self._x + 1, self.length)
        elif action == 2:
            self._x = max(self._x - 1, 0)
        elif self._x == self.length:  # nobody is here before the last step
            side = 1 if action == 1 else -1

        over = self._t > self.length
        reward = 0.0
        if over:
            reward = float(side == self._goal)
        elif self._x < self._t:  # behind
            reward = -1 / self.length
        return np.array([self._x == self.length, side], np.float32), reward, over, False, {}


class Repeat(gym.Env, ABC):
    """A game that shows decks of cards one by one. Actions name suits that were seen before.

    Observation and action: a suit, ``Discrete(4)``. An episode shows all cards, the last one after
    the last action. Each step that counts pays plus or minus one over their number, so the return
    is in [−1, 1].
    """

    def __init__(self, decks: int = 1):
        if decks < 1:
            raise ValueError(f"decks is {decks}, at least one is needed")
        self.cards = 52 * decks
        self.observation_space = gym.spaces.Discrete(4)
        self.action_space = gym.spaces.Discrete(4)

    @abstractmethod
    def answers(self, suits: list[int]) -> list[int | None]:
        """Return the right action in each of the ``cards − 1`` steps; None where none counts."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._suits = (self.np_random.permutation(self.cards) % 4).tolist()
        self._answers = self.answers(self._suits)
        self._scale = 1 / sum(answer is not None for answer in self._answers)
        self._t = 0
        return self._suits[0], {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        answer = self._answers[self._t]
        self._t += 1
        reward = 0.0
        if answer is not None:
            reward = self._scale if action == answer else -self._scale
        return self._suits[self._t], reward, self._t == self.cards - 1, False, {}


class RepeatPrevious(Repeat):
    """Name the suit of the ``k``-th last card, where the one in sight is the first.

    Nothing counts before there is such a card. Spaces and reward are those of :class:`Repeat`.
    Without memory nothing is better than to name another suit than the one in sight, which is right
    with probability 13/51 in one deck: a return of −0.49 (−0.50 with three decks).

    POPGym's RepeatPrevious (Morad et al. 2023, arXiv 2303.01859), with the k of its code: 4, 32, 64
    with 1, 2, 3 decks.
    """

    def __init__(self, decks: int = 1, k: int = 4):
        super().__init__(decks)
        if not 1 <= k < self.cards:
            raise ValueError(f"k is {k}, it must be 1 to {self.cards - 1} with {self.cards} cards")
        self.k = k

    def answers(self, suits: list[int]) -> list[int | None]:
        # In step t the cards 0 to t have been shown; the k-th last of them is card t − k + 1.
        return [*[None] * (self.k - 1), *suits[: -self.k]]


class RepeatFirst(Repeat):
    """Name the suit of the first card in every step.

    Spaces and reward are those of :class:`Repeat`. Without memory the return is −0.50. A policy
    that is shown its previous action needs no other memory: it can repeat it.

    POPGym's RepeatFirst (Morad et al. 2023, arXiv 2303.01859): 1, 8, 16 decks.
    """

    def answers(self, suits: list[int]) -> list[int | None]:
        return [suits[0]] * (self.cards - 1)


def _task(name: str, **kwargs: int) -> dict[str, Any]:
    """Return the arguments of gym.register for a class of this module.

    Gymnasium's checker is off: it would cost as much as a step does, and tests check these
    environments.
    """
    return {"entry_point": f"unroll.envs.tasks:{name}", "kwargs": kwargs, "disable_env_checker": True}


# The names without a size take it as an argument: env_kwargs '{length: 70}'.
MEMORY_TASKS = {
    "TMaze-v0": _task("TMaze"),
    "TMaze10-v0": _task("TMaze", length=10),
    "TMaze20-v0": _task("TMaze", length=20),
    "TMaze50-v0": _task("TMaze", length=50),
    "TMaze100-v0": _task("TMaze", length=100),
    "RepeatPrevious-v0": _task("RepeatPrevious"),
    "RepeatPreviousEasy-v0": _task("RepeatPrevious", decks=1, k=4),
    "RepeatPreviousMedium-v0": _task("RepeatPrevious", decks=2, k=32),
    "RepeatPreviousHard-v0": _task("RepeatPrevious", decks=3, k=64),
    "RepeatFirst-v0": _task("RepeatFirst"),
    "RepeatFirstEasy-v0": _task("RepeatFirst", decks=1),
    "RepeatFirstMedium-v0": _task("RepeatFirst", decks=8),
    "RepeatFirstHard-v0": _task("RepeatFirst", decks=16),
}


class MaskVelocity(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A wrapper that shows only the numbers at `positions` of a flat observation.

    RL Baselines3 Zoo's wrapper of tasks with these names sets the velocities to zero. Here they are
    absent.
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


# Environment → the numbers of its observation that are left. MuJoCo's observations are qpos
# (without the place along the track), then qvel.
POSITIONS = {
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
    "Hopper-v5": tuple(range(5)),
    "HalfCheetah-v5": tuple(range(8)),
    "Walker2d-v5": tuple(range(8)),
}


def _without_velocity(env_id: str) -> dict[str, Any]:
    """Return the arguments of gym.register: the original's, with one wrapper more.

    The original's vector form is left out, because it would not have the wrapper.
    """
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
