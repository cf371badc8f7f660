"""Record a dataset: an agent of Stable-Baselines3 while it learns, or a trained run of ours while it plays.

unroll record --algorithm sac --env Hopper-v5 --steps 100000 --output hopper.hdf5
unroll record --run runs/… --episodes 200 --noise 0.2 --targets 1000 3000 --output minari:hopper/mine-v0
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from unroll.commands.evaluate import config_of
from unroll.commands.process import Reporting, expand_home
from unroll.configs import Parser
from unroll.configs.sizes import Seed, small_seed
from unroll.errors import EnvError, one_line
from unroll.own import import_backbone, import_environment
from unroll.tables import significant
from unroll.zoo import find_run

if TYPE_CHECKING:  # simulators and PyTorch are imported once the arguments are known to be right
    import gymnasium as gym

    from unroll.envs.datasets.episodes import Episodes
    from unroll.envs.datasets.recording import Recorded

ALGORITHMS = ("a2c", "dqn", "ppo", "sac", "td3")
OF_LEARNING = ("--steps", "--n_envs")
OF_PLAYING = ("--episodes", "--max_steps", "--noise", "--stochastic", "--targets", "--memory", "--backbone")
ON_POLICY = ("a2c", "ppo")
MOST_IMAGES = 50_000  # steps that an off-policy agent keeps to learn from
LONGEST = 1000  # steps of an episode in an environment that has no limit of its own


def make_parser() -> Parser:
    parser = Parser(prog="unroll record", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--algorithm", choices=ALGORITHMS, help="a Stable-Baselines3 agent that learns from scratch in --env"
    )
    source.add_argument("--run", help="a run folder, one of its checkpoints, or a run of the package, zoo:NAME")
    add = parser.add_argument
    add("--output", required=True, help="file.hdf5, or minari:NAME-vN; it must not exist")
    add("--env", help="environment id, or my_module:id of your own; with --run: default its own")
    add("--env_kwargs", type=dict[str, Any], help="arguments of the environment; with --run: default its own")
    add("--steps", type=PositiveInt, default=100_000, help="with --algorithm: steps to learn for")
    add("--n_envs", type=PositiveInt, default=1, help="with --algorithm: environments to learn in")
    add("--keep", type=PositiveInt, help="a random subset of the episodes, of at most this many steps")
    add("--episodes", type=PositiveInt, default=100, help="with --run: episodes to play")
    add("--max_steps", type=PositiveInt, help="with --run: leave out episodes that are longer; default its own")
    add("--noise", type=ClosedUnitInterval, default=0.0, help="with --run: error of the actions, 0 to 1")
    add("--stochastic", action="store_true", help="with --run: draw actions from the policy")
    targets = "with --run of a decision agent: returns to ask for, in turn; default its own"
    add("--targets", type=float, nargs="+", help=targets)
    add("--memory", choices=["carried", "window"], help="with --run of a decision agent: default its own")
    add("--backbone", metavar="MODULE:CLASS", help="with --run: import its backbone, one of your own")
    add("--seed", type=Seed, default=0, help="of the agent and the environments")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Record a dataset; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = make_parser()
    options = parser.parse_args(arguments)
    expand_home(options, "run", "output")
    if options.algorithm and not options.env:
        parser.error("--algorithm needs --env")
    for flag in OF_PLAYING if options.algorithm else OF_LEARNING:
        if any(word.partition("=")[0] == flag for word in arguments):
            there, here = ("--run", "--algorithm") if options.algorithm else ("--algorithm", "--run")
            parser.error(f"{flag} goes with {there}, and means nothing with {here}")
    ending = Ending()
    with Reporting("unroll record") as report:
        import_backbone(arguments, "--backbone", options.backbone)
        import_environment(arguments, "--env", options.env)
        record(options, " ".join(["unroll record", *arguments]), ending)
    return 128 + ending.signal if ending.signal else report.code


@dataclasses.dataclass
class Ending:
    """What has ended a recording before its time: a fault of the environment, or the signal of this number."""

    fault: EnvError | None = None
    signal: int = 0


def record(options: Namespace, command: str, ending: Ending) -> None:
    """Play, write the episodes, and say what they are."""
    import numpy as np
    import torch

    from unroll.agents.common.checkpoint import installed_versions
    from unroll.envs.datasets.recording import check_output, write_hdf5, write_minari

    torch.set_num_threads(1)  # the fastest for networks this small
    check_output(options.output)  # now, and not after hours of recording
    if options.run:
        episodes = record_run(options, ending)
    else:
        episodes = record_learning(options, ending)
    if options.keep:
        episodes = subset(episodes, options.keep, options.seed)

    if options.output.startswith("minari:"):
        write_minari(episodes, options.output.removeprefix("minari:"), description=f"recorded by: {command}")
    else:
        versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
        write_hdf5(episodes, options.output, command=command, versions=versions)
    quantiles = np.quantile(episodes.returns, [0, 0.5, 1])
    low, median, high = [significant(value, abs(quantiles).max()) for value in quantiles]
    print(
        f"{len(episodes):,} episodes, {episodes.n_steps:,} steps, returns {low} … {median} (median) … {high}, "
        f"written to {options.output}"
    )
    if ending.fault:
        raise EnvError(f"{ending.fault}; the episodes that were finished before are in {options.output}")


def record_learning(options: Namespace, ending: Ending) -> Episodes:
    """Record every finished episode of an agent that learns from scratch: from untrained to good, in order.

    The agent has Stable-Baselines3's default hyperparameters. On-policy agents see normalised observations and
    rewards, as is usual for MuJoCo; the recording holds what the environment gave. Ctrl-C ends the learning, not the
    recording.
    """
    import stable_baselines3
    from gymnasium.spaces import Box, Dict
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

    from unroll.envs.datasets.images import parts_of
    from unroll.envs.datasets.recording import Recorder
    from unroll.envs.faults import numbered
    from unroll.envs.make import flatten_parts, make_env
    from unroll.envs.own import registered_id
    from unroll.envs.saving import EpisodeMonitor
    from unroll.envs.wrappers import WithoutInfo, from_zero, whole_actions

    env_id = registered_id(options.env)
    env_kwargs = options.env_kwargs or {}
    check_recordable(env_id, env_kwargs)
    limited = with_limit(env_id, env_kwargs, options.steps // options.n_envs)
    done: list[Recorded] = []

    def make(i: int) -> gym.Env:
        env: gym.Env = Recorder(make_env(env_id, images=True, env_kwargs=limited), done)
        if isinstance(env.observation_space, Dict):
            env = flatten_parts(env, lambda part: isinstance(part, Box))  # choices too, wherever they begin
        return EpisodeMonitor(WithoutInfo(whole_actions(from_zero(env))), numbered(env_id, i))

    # The recorder is inside of VecNormalize, so that it sees what the environment gave.
    vector: VecEnv = DummyVecEnv([functools.partial(make, i) for i in range(options.n_envs)])
    images = parts_of(vector.observation_space) is not None
    if options.algorithm in ON_POLICY:
        vector = VecNormalize(vector, norm_obs=not images)
    algorithm = getattr(stable_baselines3, options.algorithm.upper())
    policy = "MlpPolicy"
    arguments: dict[str, Any] = {}
    if images:
        policy, arguments = policy_for_images(vector.observation_space, options)
    try:
        agent = algorithm(policy, vector, seed=small_seed(options.seed), device="cpu", **arguments)
    except AssertionError as error:  # Stable-Baselines3 says so that an action space does not suit the algorithm
        raise EnvError(f"{options.algorithm} cannot learn in {env_id}: {one_line(error)}") from None
    with keep_what_is_finished(done, ending):
        agent.learn(options.steps)
    return recorded(done, env_id, env_kwargs, limited, f"{env_id} {options.algorithm} replay")


def policy_for_images(space: gym.Space, options: Namespace) -> tuple[str, dict[str, Any]]:
    """Choose Stable-Baselines3's policy for observations with images, and the arguments of its algorithm."""
    import gymnasium as gym

    from unroll.policies.images import channels_first, combined_extractor, image_extractor

    # The extractor is chosen for images with their channels first, as the policy gets them.
    shown = channels_first(space)
    if isinstance(shown, gym.spaces.Dict):
        policy = "MultiInputPolicy"
        extractor: Any = combined_extractor(shown)
    else:
        policy = "CnnPolicy"
        extractor = image_extractor(shown)
    arguments: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": extractor}}
    if options.algorithm not in ON_POLICY:
        # A million images, as is the default, would be too many for RAM.
        arguments["buffer_size"] = min(options.steps, MOST_IMAGES)
    return policy, arguments


def record_run(options: Namespace, ending: Ending) -> Episodes:
    """Record a trained run of ours while it plays, as its config says; an agent with targets cycles through them.

    The recording holds the environment's own observations and rewards, and the actions that were carried out.
    With ``--noise`` a continuous action gets a normal error, whose standard deviation is that share of half the range
    of the action, and is clipped. A discrete action is replaced by a random one with this probability.
    """
    import torch

    from unroll.agents import algorithm_of
    from unroll.agents.algorithm import PlayOptions
    from unroll.agents.common.checkpoint import latest_checkpoint
    from unroll.agents.evaluation.play import Episode, play
    from unroll.envs.datasets.recording import Recorder
    from unroll.envs.make import make_env
    from unroll.envs.wrappers import NoisyActions

    checkpoint = latest_checkpoint(find_run(options.run).absolute())
    _, config = config_of(checkpoint, "unroll record")
    asked = PlayOptions("cpu", options.env, options.env_kwargs, options.targets, options.memory)
    player = algorithm_of(checkpoint).player(checkpoint, config, asked)
    player.max_steps = options.max_steps or player.max_steps
    if options.stochastic:
        player.draw()
    check_recordable(player.env_id, player.env_kwargs)
    limited = with_limit(player.env_id, player.env_kwargs, LONGEST)

    # The noise is outermost, so that the policy sees the action that was carried out as its previous action.
    done: list[Recorded] = []

    def make() -> gym.Env:
        recorder = Recorder(make_env(player.env_id, images=player.images, env_kwargs=limited), done)
        env = player.show(recorder)
        return NoisyActions(env, options.noise) if options.noise else env

    # An agent with several targets is asked for them in turn.
    plan = []
    for i in range(options.episodes):
        plan.append(Episode(options.seed + i, player.targets[i % len(player.targets)]))
    torch.manual_seed(options.seed)
    with keep_what_is_finished(done, ending):
        together = 1 if player.chained else min(32, player.n_envs)
        play(player.agent, make, plan, together, player.deterministic, max_steps=player.max_steps)
    cut = sum(episode.cut for episode in plan)
    if cut:
        print(
            f"{cut} of {len(plan)} episodes did not end within {player.max_steps:,} steps and are not recorded",
            file=sys.stderr,
        )
    return recorded(done, player.env_id, player.env_kwargs, limited, f"{player.env_id} {options.run}", player.images)


def check_recordable(env_id: str, env_kwargs: dict[str, Any]) -> None:
    """Raise DatasetError unless a dataset can hold what the environment observes and what is done in it."""
    import gymnasium as gym

    from unroll.envs.datasets.conversion import MAX_DISCRETE, can_be_scaled
    from unroll.envs.datasets.images import parts_of
    from unroll.envs.make import make_env
    from unroll.envs.spaces import in_words
    from unroll.errors import DatasetError

    env = make_env(env_id, images=True, env_kwargs=env_kwargs)
    observed = env.observation_space
    actions = env.action_space
    env.close()
    row = isinstance(observed, gym.spaces.Box) and len(observed.shape) == 1
    if not row and parts_of(observed) is None:
        raise DatasetError(
            f"{env_id} observes {in_words(observed)}; a dataset holds images, or one row of numbers for each step"
        )

    taken = f"{env_id} takes actions of {in_words(actions)}; a dataset holds those of"
    if isinstance(actions, gym.spaces.Box):
        if not (actions.is_bounded() and can_be_scaled(actions)):
            raise DatasetError(f"{taken} a Box whose bounds are finite, and not too far apart for float32")
    elif not isinstance(actions, gym.spaces.Discrete):
        raise DatasetError(f"{taken} a Discrete or a Box")
    elif actions.n > MAX_DISCRETE:
        raise DatasetError(f"{taken} at most {MAX_DISCRETE:,} choices")


def with_limit(env_id: str, env_kwargs: dict[str, Any], steps: int) -> dict[str, Any]:
    """Give an environment without a step limit one, of so many steps or fewer: it may have no end of its own."""
    from unroll.envs.datasets.registered import step_limit

    limit = step_limit(env_id, env_kwargs)
    if limit is not None and limit > 0:
        return env_kwargs
    return env_kwargs | {"max_episode_steps": max(1, min(LONGEST, steps))}


def recorded(
    done: list[Recorded],
    env_id: str,
    env_kwargs: dict[str, Any],
    limited: dict[str, Any],
    name: str,
    images: bool = True,
) -> Episodes:
    """Return what was recorded, under the environment's own arguments unless an episode was cut off by our limit."""
    from unroll.envs.datasets.recording import to_episodes
    from unroll.envs.make import make_env

    limit = limited.get("max_episode_steps")
    cut = [episode for episode in done if not episode.terminated and len(episode.rewards) == limit]
    if limited != env_kwargs and cut:
        print(
            f"{env_id} has no step limit: {len(cut):,} episodes were cut off after {limit:,} steps; "
            "--env_kwargs '{max_episode_steps: N}' sets another limit"
        )
        env_kwargs = limited
    return to_episodes(done, make_env(env_id, images=images, env_kwargs=env_kwargs), name, env_kwargs)


@contextlib.contextmanager
def keep_what_is_finished(done: list[Recorded], ending: Ending) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM or a fault of an environment end the block; what was recorded so far goes on to be written.

    ``ending`` gets the signal or the fault. A fault is raised where there is nothing to write.
    """

    def stop(number: int, frame: object) -> None:
        ending.signal = number
        raise KeyboardInterrupt

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    old = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: writing the episodes that are finished", file=sys.stderr)
    except EnvError as error:
        if not done:
            raise
        ending.fault = error
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def subset(episodes: Episodes, steps: int, seed: int) -> Episodes:
    """Choose episodes at random, of at most ``steps`` steps together, and at least one; keep their order."""
    import numpy as np

    # As many of the shuffled episodes as fit.
    shuffled = np.random.default_rng(seed).permutation(len(episodes))
    n = int(np.searchsorted(np.cumsum(episodes.lengths[shuffled]), steps, side="right"))
    if n == 0:  # the first is too long by itself; a recording is not lost for that
        shortest = int(np.argmin(episodes.lengths))
        if episodes.lengths[shortest] > steps:
            print(f"no episode has as few as {steps:,} steps: the shortest one is kept")
        return episodes.select(np.array([shortest]))
    return episodes.select(np.sort(shuffled[:n]))
