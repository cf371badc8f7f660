"""Make environments from their ids, with flat observations, alone or as a vector.

An id is looked up in Gymnasium's registry and nowhere else: no name that comes from a file imports
code. Names that a person types, ``module:id``, are in own.py.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from unroll.envs.datasets.images import beside_texts, texts_in_words
from unroll.envs.datasets.order import kept
from unroll.envs.faults import env_fault, numbered
from unroll.envs.observed import check_observation
from unroll.envs.saving import EpisodeMonitor
from unroll.envs.spaces import in_words, is_simple, is_text
from unroll.envs.tasks import MEMORY_TASKS, NO_VELOCITY_TASKS
from unroll.envs.vector import ProcessVecEnv
from unroll.envs.wrappers import CheckedFlatten, OtherForm, PreviousStep, for_decisions, name_of
from unroll.errors import EnvError, one_line

log = logging.getLogger(__name__)

for task_id, task in (NO_VELOCITY_TASKS | MEMORY_TASKS).items():
    gym.register(task_id, **task)

# Packages that register environments when they are imported: how their ids begin, and the extra
# that installs them.
ELSEWHERE = {
    "gymnasium_robotics": (("Adroit", "Fetch", "PointMaze", "AntMaze", "FrankaKitchen", "Hand"), "robotics"),
    "popgym": (("popgym-",), "popgym"),
    "minigrid": (("MiniGrid-", "BabyAI-"), "minigrid"),
}
UNCHECKED = ("popgym-", *ELSEWHERE["minigrid"][0])  # Gymnasium's warnings of these are for their authors

MOST_NUMBERS = 1 << 26  # of an observation; an image of 4K has 25 million


def make_env(
    env_id: str,
    *,
    previous_action: bool = False,
    previous_reward: bool = False,
    images: bool = False,
    env_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> gym.Env:
    """Make an environment whose observation is one flat row of numbers, as in the datasets.

    A goal environment's row is observation ⊕ desired_goal; any other Dict is shown whole (see
    ``unroll.envs.datasets.order``), but for its texts, which are left out: a line of the log says so.

    Args:
        env_id: a registered id.
        previous_action: append the last action to the row (see PreviousStep).
        previous_reward: append the last reward to the row.
        images: leave an observation that is an image, or a Dict with one, as it is, but for parts
            of it that no policy knows, which become rows. PreviousStep's is a Dict then.
        env_kwargs: keyword arguments of the environment.
        kwargs: more of them, and arguments of ``gym.make`` such as ``render_mode``; they come first.

    Raises:
        EnvError: the environment does not exist, cannot be made so, or its actions cannot be shown.
    """
    env = open_env(env_id, (env_kwargs or {}) | kwargs)
    _tell_statistics(env)
    env = without_texts(env)
    _check_flattenable(env)
    flat = not (images and _has_image(env.observation_space))
    if flat:
        env = flatten_observation(env)
    elif isinstance(env.observation_space, gym.spaces.Dict):
        env = flatten_parts(env, is_simple)
    if previous_action or previous_reward:
        env = PreviousStep(env, previous_action, previous_reward)
        if flat:
            env = CheckedFlatten(env)  # in the order of the Dict's keys: the observation is first
    return env


def open_env(env_id: str, kwargs: dict[str, Any]) -> gym.Env:
    """Make an environment as it is registered, with its own observation.

    Args:
        env_id: a registered id.
        kwargs: keyword arguments of the environment and of ``gym.make``.

    Raises:
        EnvError: the environment does not exist, or cannot be made so, whatever its code raises.
    """
    find_env(env_id)
    _log_mujoco_warnings()  # before a model is compiled, which warns as well
    if env_id.startswith(UNCHECKED):
        kwargs = {"disable_env_checker": True} | kwargs
    try:
        return gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise EnvError(f"{env_id}: {one_line(error)}") from None
    except Exception as error:  # no display, no licence, another version of the simulator
        raise env_fault(error, env_id) from error


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int = 0,
    target_return: float | None = None,
    processes: bool = False,
    **kwargs: Any,
) -> VecEnv:
    """Make `n_envs` environments as a Stable-Baselines3 vector.

    Args:
        env_id: a registered id.
        n_envs: the number of environments; environment i gets the seed `seed` + i.
        seed: of the first environment.
        target_return: puts each environment under ReturnToGo, with this return to ask for; infinity: as much as an
            agent with the condition ``best`` can get. Actions are then those of a dataset: one row, which a Box of
            integers rounds. An agent that has learned from images needs ``images`` too.
        processes: give each environment a process of its own (see ProcessVecEnv).
        kwargs: arguments of ``make_env``.

    Raises:
        EnvError: an environment cannot be made.
    """
    find_env(env_id)
    if n_envs < 1:
        raise EnvError(f"n_envs {n_envs}: a vector has at least one environment")
    makers: list[Callable[[], gym.Env]] = []
    for i in range(n_envs):
        name = numbered(env_id, i)
        makers.append(functools.partial(_make_one, gym.spec(env_id), target_return, name, kwargs, tells=i == 0))
    vector: VecEnv
    if processes:
        vector = ProcessVecEnv(makers, env_id)
    else:
        vector = DummyVecEnv(makers)
    vector.seed(seed)
    return vector


def find_env(env_id: str) -> None:
    """Check that `env_id` is registered. Import known packages to find it.

    Raises:
        EnvError: it is not registered. The message suggests similar ids, or the package that has
        it.
    """
    if ":" in env_id:
        raise EnvError(f"{env_id}: an environment is named by its registered id, without a module")
    _register_known_packages(env_id)
    if env_id in gym.registry:
        return

    hint = "see gymnasium.registry for those that are"
    near = difflib.get_close_matches(env_id, list(gym.registry), n=3)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    for package, (beginnings, extra) in ELSEWHERE.items():
        if env_id.startswith(beginnings) and not importlib.util.find_spec(package):
            hint = f"it comes with {package.replace('_', '-')}: pip install 'unroll-rl[{extra}]'"
    raise EnvError(f"environment {env_id!r} is not registered; {hint}")


def _register_known_packages(env_id: str) -> None:
    """Import the installed packages that may have this environment."""
    if env_id not in gym.registry and importlib.util.find_spec("gymnasium_robotics"):
        # it prints advice about versions of environments that nobody asked for
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
    # Importing one of these registers its environments.
    for package in ("popgym", "minigrid"):
        beginnings, _ = ELSEWHERE[package]
        if env_id not in gym.registry and env_id.startswith(beginnings) and importlib.util.find_spec(package):
            importlib.import_module(package)


def _make_one(
    spec: gym.envs.registration.EnvSpec,
    target_return: float | None,
    vector_name: str,
    kwargs: dict[str, Any],
    tells: bool = True,
) -> gym.Env:
    """Make one environment of a vector, perhaps in another process.

    ``tells``: say what is left out of its observation. One of a vector is enough.
    """
    # A new process does not know what this one has registered. The environment's own module, if it
    # has one, is imported by its entry point: a worker has the parent's module path.
    gym.registry.setdefault(spec.id, spec)
    if not tells:
        _TOLD.update((spec.id, spec.id + STATISTICS))
    env = make_env(spec.id, **kwargs)
    if target_return is not None:
        env = for_decisions(env, target_return)
    return EpisodeMonitor(env, vector_name)


def _has_image(space: gym.Space) -> bool:
    """Apply the rule by which Stable-Baselines3 decides where to use a CNN."""
    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    return any(is_image_space(part) for part in parts)


def _tell_statistics(env: gym.Env) -> None:
    """Say in a line of the log, once, that scores depend on a wrapper that normalises by what it has seen so far."""
    kinds = []
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, NormalizeObservation | NormalizeReward):
            kinds.append(type(layer).__name__)
        layer = layer.env
    if kinds and name_of(env) + STATISTICS not in _TOLD:
        log.warning(
            "%s: its wrapper %s keeps statistics that begin anew in each environment, so scores depend on how many "
            "play; --normalize_observation and --normalize_reward do the same without it",
            name_of(env),
            " and ".join(kinds),
        )
        _TOLD.add(name_of(env) + STATISTICS)


def without_texts(env: gym.Env) -> gym.Env:
    """Leave the texts of a Dict out, such as MiniGrid's mission: a policy reads numbers.

    Raises:
        EnvError: the environment shows nothing but text.
    """
    rest: Any
    rest, texts = beside_texts(env.observation_space)
    if is_text(rest) or (texts and not rest.spaces):
        raise EnvError(f"{name_of(env)}: shows text alone, of which a wrapper must make numbers")
    if not texts:
        return env

    # One line for all environments of this kind.
    name = name_of(env)
    if name not in _TOLD:
        log.warning("%s: %s", name, texts_in_words(texts))
        _TOLD.add(name)

    def show(observation: dict[str, Any]) -> dict[str, Any]:
        return {key: observation[key] for key in rest.spaces}

    return OtherForm(env, show, rest)


def _check_flattenable(env: gym.Env) -> None:
    space = env.observation_space
    if not space.is_np_flattenable:
        raise EnvError(f"{name_of(env)}: an observation of {in_words(space)} cannot be made one row of numbers")
    width = gym.spaces.flatdim(space)
    if width > MOST_NUMBERS:
        raise EnvError(f"{name_of(env)}: an observation of {in_words(space)} is {width:,} numbers")


def flatten_observation(env: gym.Env) -> gym.Env:
    """Show the observation as one row: a goal environment's observation ⊕ desired_goal, else all of it."""
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict) and kept(space.spaces) != tuple(space.spaces):
        # FilterObservation would leave a Dict, whose sorted keys put the goal first.
        keys = kept(space.spaces)
        parts = gym.spaces.Tuple([space[key] for key in keys])
        env = OtherForm(env, lambda obs: tuple(obs[key] for key in keys), parts)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return env
    return CheckedFlatten(env)


def flatten_parts(env: gym.Env, keep: Callable[[gym.Space], bool]) -> gym.Env:
    """Make rows of the parts of a Dict that are not to be kept as they are."""
    parts = env.observation_space.spaces  # type: ignore[attr-defined]
    rows = {key: flatten_space(part) for key, part in parts.items() if not keep(part)}
    if not rows:
        return env

    def show(observation: dict[str, Any]) -> dict[str, Any]:
        for key in rows:
            check_observation(parts[key], observation[key])
        return observation | {key: flatten(parts[key], observation[key]) for key in rows}

    return OtherForm(env, show, gym.spaces.Dict(parts | rows))


STATISTICS = " statistics"
_TOLD: set[str] = set()  # environments whose texts were said to be left out; with STATISTICS, of whose it was told
_SHOWN: set[str] = set()  # the kinds of MuJoCo's warnings that were shown


def _log_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to the log instead of MUJOCO_LOG.TXT in the user's folder."""
    import mujoco

    mujoco.set_mju_user_warning(_log_warning)


def _log_warning(message: str) -> None:
    """Log a warning once per process, whatever its numbers are, and after that at debug level."""
    kind = re.sub(r"\d[\d.e+-]*", "", message)
    level = logging.DEBUG if kind in _SHOWN else logging.WARNING
    log.log(level, "MuJoCo: %s", message.strip())
    _SHOWN.add(kind)
