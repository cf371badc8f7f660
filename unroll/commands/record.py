"""Record a dataset: an agent of Stable-Baselines3 while it learns, or a trained run of ours while it plays.

    python -m unroll.commands.record --algorithm sac --env Hopper-v5 --steps 100000 --output hopper.hdf5
    python -m unroll.commands.record --run runs/… --episodes 200 --noise 0.2 --targets 1000 3000 --output minari:hopper/mine-v0

This is a command: like train.py it stands above the packages, so it alone in ``envs`` imports from them.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from unroll.commands.process import names, run_command
from unroll.configs import Parser
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import Recorded, Recorder, check_output, to_episodes, write_hdf5, write_minari
from unroll.envs.make import make_env
from unroll.envs.spaces import in_words
from unroll.envs.wrappers import PreviousStep, ReturnToGo
from unroll.errors import DatasetError, EnvError, one_line

if TYPE_CHECKING:
    from unroll.agents.evaluation.player import Player

ALGORITHMS = ("a2c", "dqn", "ppo", "sac", "td3")


def record_learning(algorithm: str, env_id: str, steps: int, seed: int, n_envs: int = 1) -> Episodes:
    """Every finished episode of an agent that learns from scratch: a replay set, from untrained to good, in order.

    The agent has Stable-Baselines3's default hyperparameters. On-policy ones see normalised observations and rewards,
    as is usual for MuJoCo; the recording holds what the environment gave. Ctrl-C ends the learning, not the recording.
    """
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

    done: list[Recorded] = []
    vector: VecEnv = DummyVecEnv([lambda: Recorder(make_env(env_id), done)] * n_envs)
    if algorithm in ("a2c", "ppo"):
        vector = VecNormalize(vector)
    try:
        agent = getattr(stable_baselines3, algorithm.upper())("MlpPolicy", vector, seed=seed, device="cpu")
    except AssertionError as error:  # how Stable-Baselines3 says that an action space does not suit the algorithm
        raise EnvError(f"{algorithm} cannot learn in {env_id}: {one_line(error)}") from None
    with keep_on_interrupt():
        agent.learn(steps)
    return to_episodes(done, make_env(env_id), f"{env_id} {algorithm} replay")


def record_run(
    run: str,
    episodes: int,
    noise: float = 0.0,
    targets: list[float] | None = None,
    seed: int = 0,
    memory: Any = None,
    deterministic: bool = True,
) -> Episodes:
    """A trained run of ours plays ``episodes`` episodes; a decision agent cycles through the target returns.

    The recording holds the environment's own observations and rewards, and the actions that were carried out.
    ``noise``: continuous actions get a normal error of this standard deviation, in units of half the action range, and
    are clipped; discrete ones are replaced by a random action with this probability.
    """
    import torch

    from unroll.agents.common.checkpoint import agent_of, latest_checkpoint
    from unroll.agents.evaluation.play import Episode, play

    checkpoint = latest_checkpoint(run)
    ours = ppo_in if agent_of(checkpoint) == "RecurrentPPO" else decision_in
    player, show = ours(run, checkpoint, targets, memory)
    check_recordable(player.env_id)
    done: list[Recorded] = []
    plan = [Episode(seed + i, player.targets[i % len(player.targets)]) for i in range(episodes)]

    def make() -> gym.Env:  # the policy sees, as its previous action, the one that was carried out
        return NoisyActions(show(Recorder(make_env(player.env_id), done)), noise)

    torch.manual_seed(seed)
    with keep_on_interrupt():
        play(player.agent, make, plan, n_envs=32, deterministic=deterministic)
    return to_episodes(done, make_env(player.env_id), f"{player.env_id} {run}")


def decision_in(
    run: str, checkpoint: Path, targets: list[float] | None, memory: Any
) -> tuple[Player, Callable[[gym.Env], gym.Env]]:
    """The agent in its environment, and what it sees of an environment with flat observations."""
    from unroll.agents import DecisionAgent
    from unroll.agents.evaluation.player import decision_player

    agent = DecisionAgent.load(checkpoint, device="cpu")
    env_id = agent.task.get("env")
    if env_id is None:
        raise EnvError(f"{run}: its dataset names no environment, so there is nowhere to play")
    return decision_player(agent, env_id, targets, memory or agent.policy.memory), ReturnToGo


def ppo_in(
    run: str, checkpoint: Path, targets: list[float] | None, memory: Any
) -> tuple[Player, Callable[[gym.Env], gym.Env]]:
    """The same for PPO."""
    from unroll.agents.ppo.algorithm import load_ppo, player_of, refuse_decision_options

    refuse_decision_options(run, targets, memory)
    agent, config = load_ppo(checkpoint, "cpu")
    action, reward = config.previous_action, config.previous_reward

    def show(env: gym.Env) -> gym.Env:
        return FlattenObservation(PreviousStep(env, action, reward)) if action or reward else env

    return player_of(agent, config, ablation=False), show


def check_recordable(env_id: str) -> None:
    """Raise DatasetError unless a dataset can hold what the environment observes and what is done in it."""
    env = make_env(env_id, images=True)
    observed, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(observed, gym.spaces.Box) or len(observed.shape) != 1:
        raise DatasetError(f"{env_id} observes {in_words(observed)}; a dataset holds one row of numbers for each step")
    if not (
        isinstance(actions, gym.spaces.Discrete) or (isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1)
    ):
        raise DatasetError(
            f"{env_id} takes actions of {in_words(actions)}; a dataset holds those of a Discrete or a flat Box"
        )


@contextlib.contextmanager
def keep_on_interrupt() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the block, and what was recorded so far goes on to be written."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: writing the episodes that are finished", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, old)


class NoisyActions(gym.ActionWrapper):
    """Disturbs what the agent chose; the recording holds what was done."""

    def __init__(self, env: gym.Env, noise: float):
        super().__init__(env)
        self.noise = noise
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # an episode's noise depends on its seed alone
            self._random = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        space = self.env.action_space
        if isinstance(space, gym.spaces.Discrete):
            allowed = self._allowed(space)
            return allowed[self._random.integers(len(allowed))] if self._random.random() < self.noise else action
        assert isinstance(space, gym.spaces.Box)
        error = self._random.normal(scale=self.noise, size=space.shape) * (space.high - space.low) / 2
        return np.clip(action + error, space.low, space.high).astype(np.float32)

    def _allowed(self, space: gym.spaces.Discrete) -> np.ndarray:
        masked = self.env.has_wrapper_attr("action_masks")
        return np.flatnonzero(self.env.get_wrapper_attr("action_masks")()) if masked else np.arange(space.n)


def subset(episodes: Episodes, steps: int, seed: int) -> Episodes:
    """A random choice of episodes, in their order, of at most ``steps`` steps together."""
    shuffled = np.random.default_rng(seed).permutation(len(episodes))
    n = int(np.searchsorted(np.cumsum(episodes.lengths[shuffled]), steps, side="right"))
    if n == 0:
        raise DatasetError(f"{episodes.name}: no episode has as few as {steps} steps")
    return episodes.select(np.sort(shuffled[:n]))


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="python -m unroll.commands.record", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--algorithm", choices=ALGORITHMS, help="a Stable-Baselines3 agent that learns from scratch in --env"
    )
    source.add_argument("--run", help="a run folder of train.py")
    parser.add_argument("--output", required=True, help="file.hdf5, or minari:NAME-vN; it must not exist")
    parser.add_argument("--env", help="with --algorithm: environment id")
    parser.add_argument("--steps", type=PositiveInt, default=100_000, help="with --algorithm: steps to learn for")
    parser.add_argument("--n_envs", type=PositiveInt, default=1, help="with --algorithm: environments to learn in")
    parser.add_argument("--keep", type=PositiveInt, help="a random subset of the episodes, of at most this many steps")
    parser.add_argument("--episodes", type=PositiveInt, default=100, help="with --run: episodes to play")
    parser.add_argument(
        "--noise", type=ClosedUnitInterval, default=0.0, help="with --run: error of the actions, 0 to 1"
    )
    parser.add_argument("--stochastic", action="store_true", help="with --run: draw actions from the policy")
    parser.add_argument(
        "--targets", type=float, nargs="+", help="with --run of a decision agent: returns to ask for, in turn"
    )
    parser.add_argument(
        "--memory", choices=["carried", "window"], help="with --run of a decision agent: default its own"
    )
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="with --run: import its backbone, one of your own")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the agent and the environments")
    options = parser.parse_args(arguments)
    if options.algorithm and not options.env:
        parser.error("--algorithm needs --env")
    may_import = names(arguments, "--backbone", options.backbone)
    return run_command(
        "unroll.commands.record",
        collect,
        options,
        " ".join(["python -m unroll.commands.record", *arguments]),
        may_import,
    )


def collect(options: Namespace, command: str, may_import: bool) -> int:
    import torch

    torch.set_num_threads(1)  # networks this small are faster so
    check_output(options.output)  # now, and not after hours of recording
    if may_import:
        from unroll.policies.backbones import import_own

        import_own(options.backbone)
    if options.run:
        episodes = record_run(
            options.run,
            options.episodes,
            options.noise,
            options.targets,
            options.seed,
            options.memory,
            deterministic=not options.stochastic,
        )
    else:
        episodes = record_learning(options.algorithm, options.env, options.steps, options.seed, options.n_envs)
    if options.keep:
        episodes = subset(episodes, options.keep, options.seed)
    if options.output.startswith("minari:"):
        write_minari(episodes, options.output.removeprefix("minari:"), description=f"recorded by: {command}")
    else:
        from unroll.agents.common.checkpoint import installed_versions

        versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
        write_hdf5(episodes, options.output, command=command, versions=versions)
    low, median, high = np.quantile(episodes.returns, [0, 0.5, 1])
    print(
        f"{len(episodes):,} episodes, {episodes.n_steps:,} steps, returns {low:.1f} … {median:.1f} (median) … "
        f"{high:.1f}, written to {options.output}"
    )
    return 0
