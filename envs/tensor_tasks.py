"""The project's tasks over a batch of tensors: step for step those of Gymnasium and of tasks.py.

Their episodes differ from those by the random numbers alone, which come from a generator of the device. Spaces, sizes
and constants are read from the ordinary environments.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import DEFAULT_X, DEFAULT_Y, PendulumEnv
from gymnasium.spaces.utils import flatten_space
from torch import Tensor

from unroll.envs import tasks
from unroll.envs.tasks import MEMORY_TASKS, POSITIONS
from unroll.envs.tensor import PreviousTensorStep, TensorEnv
from unroll.errors import EnvError, one_line

SUITS = 4


class TensorTask(TensorEnv):
    """A task whose state is a few tensors [N, …] by name.

    Which episodes are over is never asked by the host, which would have to wait for the device: new states are drawn
    for all environments in every step, and taken where an episode ended.

    Args:
        task: the ordinary environment, which has the spaces. A choice is shown as a one-hot row, as by ``make_env``.
        max_steps: steps after which an episode is truncated; None: it ends by itself.
    """

    def __init__(
        self,
        num_envs: int,
        task: gym.Env,
        device: torch.device | str = "cpu",
        max_steps: int | None = None,
    ):
        super().__init__(num_envs, flatten_space(task.observation_space), task.action_space, device)
        self.max_steps = max_steps
        self.generator = torch.Generator(self.device)
        self.state: dict[str, Tensor] = {}
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)  # steps of each episode

    @abstractmethod
    def begin(self) -> dict[str, Tensor]:
        """Draw the first states of N episodes."""

    @abstractmethod
    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step in every episode: rewards [N], and which are terminated [N].

        ``elapsed`` counts this step already. ``state`` is replaced, not written into.
        """

    @abstractmethod
    def observe(self) -> Tensor:
        """Return what the states show, [N, …]."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self.begin()
        self.elapsed = torch.zeros_like(self.elapsed)
        return self.observe(), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        self.elapsed = self.elapsed + 1
        rewards, terminated = self.advance(torch.as_tensor(actions, device=self.device))
        final = self.observe()
        over = terminated
        truncated = torch.zeros_like(terminated)
        if self.max_steps is not None:
            truncated = self.elapsed >= self.max_steps
            over = terminated | truncated

        # An episode begins where one is over.
        begun = self.begin()
        for name, value in self.state.items():
            rows = over.view(-1, *[1] * (value.ndim - 1))
            self.state[name] = torch.where(rows, begun[name], value)
        self.elapsed = self.elapsed.masked_fill(over, 0)
        return self.observe(), rewards, terminated, truncated, {"final_obs": final}

    def save_state(self) -> dict[str, Tensor]:
        return {**self.state, "elapsed": self.elapsed, "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state. That of another device's generator is left out: new episodes are others then.

        Raises:
            ValueError, KeyError, RuntimeError: it is the state of another task.
        """
        values = {}
        for name, present in (self.state | {"elapsed": self.elapsed}).items():
            value = state[name]
            if value.shape != present.shape or value.dtype != present.dtype:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}, not {present.dtype} {tuple(present.shape)}"
                )
            values[name] = value.to(self.device)
        self.elapsed = values.pop("elapsed")
        self.state = values
        generator = state["generator"].cpu()
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers from 0 to 1, float64 [N, …]."""
        return torch.rand((self.num_envs, *shape), generator=self.generator, dtype=torch.float64, device=self.device)


class Control(TensorTask):
    """A task of classic control, in float64 as Gymnasium's; its state is one tensor ``physics`` [N, numbers].

    Args:
        positions: the numbers of the observation that are shown; None: all.
    """

    def __init__(
        self,
        num_envs: int,
        task: gym.Env,
        device: torch.device | str,
        max_steps: int,
        positions: tuple[int, ...] | None = None,
    ):
        if positions is not None:
            task = tasks.MaskVelocity(task, positions)
        super().__init__(num_envs, task, device, max_steps)
        self.positions = positions

    @abstractmethod
    def shown(self, physics: Tensor) -> list[Tensor]:
        """Return the numbers of the whole observation, [N] each."""

    def observe(self) -> Tensor:
        numbers = self.shown(self.state["physics"])
        if self.positions is not None:
            numbers = [numbers[position] for position in self.positions]
        return torch.stack(numbers, 1).float()


class CartPole(Control):
    """Gymnasium's CartPole-v1."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", positions: tuple[int, ...] | None = None):
        self.pole = CartPoleEnv()
        super().__init__(num_envs, self.pole, device, 500, positions)

    def begin(self) -> dict[str, Tensor]:
        return {"physics": 0.1 * self.uniform(4) - 0.05}

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        pole = self.pole
        _, x_dot, theta, theta_dot = self.state["physics"].unbind(1)
        force = pole.force_mag * (2.0 * actions.double() - 1.0)
        cosine = torch.cos(theta)
        sine = torch.sin(theta)

        # The equations of Florian 2007, "Correct equations for the dynamics of the cart-pole system", without friction.
        # The operations are in Gymnasium's order: a pole that stands for 500 steps makes a rounding as large as itself.
        push = (force + pole.polemass_length * theta_dot.square() * sine) / pole.total_mass
        inertia = pole.length * (4.0 / 3.0 - pole.masspole * cosine.square() / pole.total_mass)
        theta_acc = (pole.gravity * sine - cosine * push) / inertia
        x_acc = push - pole.polemass_length * theta_acc * cosine / pole.total_mass

        # One step of Euler's method.
        velocities = torch.stack([x_dot, x_acc, theta_dot, theta_acc], 1)
        physics = self.state["physics"] + pole.tau * velocities
        self.state = {"physics": physics}
        fallen = (physics[:, 0].abs() > pole.x_threshold) | (physics[:, 2].abs() > pole.theta_threshold_radians)
        return torch.ones(self.num_envs, device=self.device), fallen

    def shown(self, physics: Tensor) -> list[Tensor]:
        return list(physics.unbind(1))


class Pendulum(Control):
    """Gymnasium's Pendulum-v1."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", positions: tuple[int, ...] | None = None):
        self.rod = PendulumEnv()
        super().__init__(num_envs, self.rod, device, 200, positions)
        self.high = torch.tensor([DEFAULT_X, DEFAULT_Y], dtype=torch.float64, device=self.device)

    def begin(self) -> dict[str, Tensor]:
        return {"physics": (2.0 * self.uniform(2) - 1.0) * self.high}

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        rod = self.rod
        theta, theta_dot = self.state["physics"].unbind(1)
        torque = actions[:, 0].clamp(-rod.max_torque, rod.max_torque)  # float32, as Gymnasium has it
        angle = torch.remainder(theta + torch.pi, 2 * torch.pi) - torch.pi
        costs = angle.square() + 0.1 * theta_dot.square() + 0.001 * torque.square()

        pull = 3 * rod.g / (2 * rod.l) * torch.sin(theta)
        theta_dot = theta_dot + (pull + 3.0 / (rod.m * rod.l**2) * torque) * rod.dt
        theta_dot = theta_dot.clamp(-rod.max_speed, rod.max_speed)
        self.state = {"physics": torch.stack([theta + theta_dot * rod.dt, theta_dot], 1)}
        return -costs.float(), torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def shown(self, physics: Tensor) -> list[Tensor]:
        theta, theta_dot = physics.unbind(1)
        return [torch.cos(theta), torch.sin(theta), theta_dot]


class TMaze(TensorTask):
    """``unroll.envs.tasks.TMaze``. Its state: the place ``x``, the side ``goal``, and the side that is ``shown``."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", length: int = 10):
        super().__init__(num_envs, tasks.TMaze(length), device)
        self.length = length

    def begin(self) -> dict[str, Tensor]:
        goal = torch.where(self.uniform() < 0.5, 1, -1)
        return {"x": torch.zeros_like(goal), "goal": goal, "shown": goal}

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        x = self.state["x"]
        goal = self.state["goal"]
        choice = torch.where(actions == 1, 1, -1)
        vertical = (actions == 1) | (actions == 3)
        side = torch.where(vertical & (x == self.length), choice, 0)
        moved = (actions == 0).long() - (actions == 2).long()
        x = (x + moved).clamp(0, self.length)

        over = self.elapsed > self.length
        cost = torch.where(x < self.elapsed, -1 / self.length, 0.0)
        self.state = {"x": x, "goal": goal, "shown": side}
        return torch.where(over, (side == goal).float(), cost), over

    def observe(self) -> Tensor:
        return torch.stack([self.state["x"] == self.length, self.state["shown"]], 1).float()


class Repeat(TensorTask):
    """``unroll.envs.tasks.Repeat``. Its state: the suit in sight, and how many cards of each are ``left`` [N, 4].

    Cards are drawn as they are shown, each as likely as it is in a shuffled deck.
    """

    def __init__(self, num_envs: int, task: tasks.Repeat, device: torch.device | str):
        super().__init__(num_envs, task, device)
        self.cards = task.cards

    @abstractmethod
    def answers(self) -> tuple[Tensor, Tensor | None]:
        """Return the right actions [N] after ``elapsed - 1`` steps, and where they count [N]; None: everywhere."""

    def begin(self) -> dict[str, Tensor]:
        left = torch.full((self.num_envs, SUITS), self.cards // SUITS, device=self.device)
        suit, left = self.draw(left)
        return {"suit": suit, "left": left}

    def draw(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a card of those that are left: its suit [N], and what is left then."""
        below = left.cumsum(1)
        place = self.uniform(1) * below[:, -1:]
        # After the last card nothing is left, and nothing is read of what is drawn.
        suit = (place >= below).sum(1).clamp(max=SUITS - 1)
        return suit, left - F.one_hot(suit, SUITS)

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        answers, counts = self.answers()
        rewards = torch.where(actions == answers, self.scale, -self.scale)
        if counts is not None:
            rewards = torch.where(counts, rewards, 0.0)
        suit, left = self.draw(self.state["left"])
        self.state = self.state | {"suit": suit, "left": left}
        return rewards, self.elapsed == self.cards - 1

    @property
    @abstractmethod
    def scale(self) -> float:
        """The reward of a right answer."""

    def observe(self) -> Tensor:
        return F.one_hot(self.state["suit"], SUITS)


class RepeatPrevious(Repeat):
    """``unroll.envs.tasks.RepeatPrevious``. Its state holds the last k suits too, in a ring [N, k]."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", decks: int = 1, k: int = 4):
        super().__init__(num_envs, tasks.RepeatPrevious(decks, k), device)
        self.k = k

    def begin(self) -> dict[str, Tensor]:
        state = super().begin()
        return state | {"ring": state["suit"][:, None].repeat(1, self.k)}

    def answers(self) -> tuple[Tensor, Tensor | None]:
        # Step t shows card t and asks for card t - k + 1, whose place the next card will take.
        place = (self.elapsed % self.k)[:, None]
        return self.state["ring"].gather(1, place).squeeze(1), self.elapsed >= self.k

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        rewards, over = super().advance(actions)
        place = (self.elapsed % self.k)[:, None]
        self.state["ring"] = self.state["ring"].scatter(1, place, self.state["suit"][:, None])
        return rewards, over

    @property
    def scale(self) -> float:
        return 1 / (self.cards - self.k)


class RepeatFirst(Repeat):
    """``unroll.envs.tasks.RepeatFirst``. Its state holds the suit of the ``first`` card too."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", decks: int = 1):
        super().__init__(num_envs, tasks.RepeatFirst(decks), device)

    def begin(self) -> dict[str, Tensor]:
        state = super().begin()
        return state | {"first": state["suit"]}

    def answers(self) -> tuple[Tensor, Tensor | None]:
        return self.state["first"], None

    @property
    def scale(self) -> float:
        return 1 / (self.cards - 1)


# Id → the class, and the arguments that the id stands for.
TENSOR_TASKS: dict[str, tuple[Callable[..., TensorTask], dict[str, Any]]] = {
    "CartPole-v1": (CartPole, {}),
    "CartPoleNoVel-v1": (CartPole, {"positions": POSITIONS["CartPole-v1"]}),
    "Pendulum-v1": (Pendulum, {}),
    "PendulumNoVel-v1": (Pendulum, {"positions": POSITIONS["Pendulum-v1"]}),
}
OF_ENTRY_POINTS: dict[str, Callable[..., TensorTask]] = {
    f"{tasks.__name__}:{cls.__name__}": cls for cls in (TMaze, RepeatPrevious, RepeatFirst)
}
for task_id, registered in MEMORY_TASKS.items():
    TENSOR_TASKS[task_id] = (OF_ENTRY_POINTS[registered["entry_point"]], registered["kwargs"])


def make_tensor_env(
    env_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    env_kwargs: dict[str, Any] | None = None,
    previous_action: bool = False,
    previous_reward: bool = False,
) -> TensorEnv:
    """Make ``num_envs`` environments of tensors.

    Args:
        env_id: one of ``TENSOR_TASKS``.
        num_envs: their number.
        device: where their tensors are.
        env_kwargs: arguments of the task: ``length`` of a T-maze, ``decks`` and ``k`` of card games.
        previous_action: append the last action to the row (see PreviousTensorStep).
        previous_reward: append the last reward to the row.

    Raises:
        EnvError: the environment has no such form, no such argument, or cannot be of that size.
    """
    if env_id not in TENSOR_TASKS:
        raise EnvError(f"{env_id} has no form of tensors; these have one: {', '.join(TENSOR_TASKS)}")
    cls, own = TENSOR_TASKS[env_id]
    sizes = [name for name in inspect.signature(cls).parameters if name in ("length", "decks", "k")]
    for name in env_kwargs or {}:
        if name not in sizes:
            known = " and ".join(sizes) or "no arguments"
            raise EnvError(f"{env_id} as tensors takes {known}, not {name}")
    try:
        env: TensorEnv = cls(num_envs, device, **(own | (env_kwargs or {})))
    except (TypeError, ValueError) as error:
        raise EnvError(f"{env_id}: {one_line(error)}") from None
    if previous_action or previous_reward:
        env = PreviousTensorStep(env, previous_action, previous_reward)
    return env
