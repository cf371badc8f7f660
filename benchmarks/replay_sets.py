"""Sets that published agents play, from untrained to good or one alone, to choose and to judge decision agents on.

    git clone https://github.com/openai/imitation
    git clone https://github.com/DLR-RM/rl-trained-agents
    python -m benchmarks.replay_sets --imitation imitation --agents rl-trained-agents --output FOLDER [--sets walker2d]

Each set has ``--steps`` (100,000) that one or several agents played, actions drawn from their policies. The agents are
snapshots of TRPO (openai/imitation, MIT; Ho & Ermon 2016) and agents of Stable-Baselines3 (DLR-RM/rl-trained-agents,
MIT). Only numbers are read from their files. Episode k begins with the seed 20,000,000 + k: evaluate on other seeds.
LunarLander needs ``pip install gymnasium[box2d]``.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from unroll.envs.datasets.recording import Recorded, Recorder, to_episodes, write_hdf5
from unroll.envs.make import make_env
from unroll.tables import markdown_table

FIRST_SEED = 20_000_000

# Set → environment, and the share of the steps of each agent. "trpo:K" is snapshot K of openai/imitation.
SETS: dict[str, tuple[str, dict[str, float]]] = {
    "walker2d": ("Walker2d-v5", {"trpo:0": 0.06, "trpo:20": 0.2, "a2c": 0.25, "trpo:40": 0.25, "trpo:60": 0.24}),
    "halfcheetah": ("HalfCheetah-v5", {"trpo:0": 0.06, "trpo:40": 0.24, "a2c": 0.2, "trpo:240": 0.25, "ars": 0.25}),
    "swimmer": ("Swimmer-v5", {"random": 0.1, "a2c": 0.3, "sac": 0.3, "ars": 0.3}),
    "ant": ("Ant-v5", {"random": 0.1, "trpo:100": 0.2, "trpo:160": 0.25, "trpo:240": 0.25, "ars": 0.2}),
    "lunarlander": ("LunarLander-v3", {"random": 0.1, "ppo": 0.3, "a2c": 0.2, "dqn": 0.2, "qrdqn": 0.2}),
    "hopper": ("Hopper-v5", {"trpo:0": 0.05, "trpo:80": 0.25, "trpo:160": 0.25, "ppo": 0.2, "a2c": 0.25}),
    "bipedalwalker": ("BipedalWalker-v3", {"random": 0.1, "a2c": 0.25, "ppo": 0.3, "trpo": 0.35}),
    "continuous": ("LunarLanderContinuous-v3", {"random": 0.1, "a2c": 0.3, "ppo": 0.3, "trpo": 0.3}),
    "acrobot": ("Acrobot-v1", {"random": 0.4, "ppo": 0.2, "a2c": 0.2, "dqn": 0.2}),
    # One agent, whose returns differ by luck.
    "walker2d-medium": ("Walker2d-v5", {"trpo:60": 1}),
    "halfcheetah-medium": ("HalfCheetah-v5", {"trpo:40": 1}),
    "ant-medium": ("Ant-v5", {"trpo:160": 1}),
    "lunarlander-medium": ("LunarLander-v3", {"a2c": 1}),
    "bipedalwalker-medium": ("BipedalWalker-v3", {"a2c": 1}),
}
SNAPSHOTS = {
    "Walker2d-v5": "Walker2d-v1_1",
    "HalfCheetah-v5": "HalfCheetah-v1_2",
    "Ant-v5": "Ant-v1_0",
    "Hopper-v5": "Hopper-v1_4",
}
FOLDERS = {
    "LunarLander-v3": "LunarLander-v2",
    "LunarLanderContinuous-v3": "LunarLanderContinuous-v2",
}  # elsewhere "-v3" in the place of "-v5"
EXPLORATION = 0.1  # of the agents that learn values: the share of random actions

Layers = list[tuple[np.ndarray, np.ndarray]]  # weight [out, in], bias [out]
Act = Callable[[np.ndarray, np.random.Generator], Any]


class Scale(NamedTuple):
    """How observations were normalised."""

    mean: np.ndarray
    deviation: np.ndarray
    clip: float


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def network(layers: Layers, activation: Callable[[np.ndarray], np.ndarray], scale: Scale | None) -> Callable:
    """Return a function from an observation to the last hidden layer."""
    width = layers[0][0].shape[1]

    def hidden(observation: np.ndarray) -> np.ndarray:
        x = np.zeros(width)
        # Ant-v5 shows contact forces that the agents of before always saw as zeros.
        shown = observation[:27] if width == 111 else observation
        x[: len(shown)] = shown
        if scale is not None:
            x = np.clip((x - scale.mean) / scale.deviation, -scale.clip, scale.clip)
        for weight, bias in layers:
            x = activation(weight @ x + bias)
        return x

    return hidden


def snapshot(path: Path, iteration: int) -> Act:
    """Read a Gaussian policy of openai/imitation."""
    with h5py.File(path) as file:
        policy = file[f"snapshots/iter{iteration:07d}/GaussianPolicy"]
        read = lambda name: np.asarray(policy[name])  # noqa: E731
        affine = [f"hidden/FeedforwardNet/layer_{i}/AffineLayer" for i in (0, 2)] + ["out/AffineLayer"]
        *hidden, (weight, bias) = [(read(f"{name}/W").T, read(f"{name}/b")[0]) for name in affine]
        deviation = np.exp(read("logstdevs_1_Da")[0])
        norm = "obsnorm/Standardizer/"
        scale = None
        if read(f"{norm}count") > 1:
            mean = read(f"{norm}mean_1_D")[0]
            variance = read(f"{norm}meansq_1_D")[0] - mean**2
            scale = Scale(mean, np.sqrt(np.maximum(variance, 0)) + 1e-6, np.inf)
    last = network(hidden, np.tanh, scale)
    return lambda x, random: weight @ last(x) + bias + deviation * random.standard_normal(len(bias))


class NumbersOnly(pickle.Unpickler):
    """Read a VecNormalize as its numbers; of all classes but numpy's only the attributes are kept."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar"):
            return super().find_class(module, name)
        return type(name, (), {"__init__": lambda self, *a: None})


def published(files: Callable[[str], bytes | None], algorithm: str, n_actions: int) -> Act:
    """Read an agent of Stable-Baselines3; ``files`` gives the content of ``.zip`` and ``/vecnormalize.pkl``."""
    archive = files(".zip")
    if archive is None:
        raise SystemExit(f"no agent of {algorithm}")
    content = zipfile.ZipFile(io.BytesIO(archive))
    weights = torch.load(io.BytesIO(content.read("policy.pth")), map_location="cpu", weights_only=True)
    weights = {name: value.double().numpy() for name, value in weights.items()}
    rectified = "ReLU" in str(json.loads(content.read("data")).get("policy_kwargs"))

    scale = None
    pickled = files("/vecnormalize.pkl")
    if pickled is not None:
        seen = vars(NumbersOnly(io.BytesIO(pickled)).load())
        if seen["norm_obs"]:
            statistics = vars(seen["obs_rms"])
            scale = Scale(statistics["mean"], np.sqrt(statistics["var"] + seen["epsilon"]), seen["clip_obs"])

    def layers(prefix: str) -> Layers:
        numbers = {int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix)}
        return [(weights[f"{prefix}{i}.weight"], weights[f"{prefix}{i}.bias"]) for i in sorted(numbers)]

    if algorithm in ("sac", "tqc"):
        last = network(layers("actor.latent_pi."), relu, scale)
        mean, spread = [(weights[f"actor.{name}.weight"], weights[f"actor.{name}.bias"]) for name in ("mu", "log_std")]

        def squashed(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
            h = last(x)
            deviation = np.exp(np.clip(spread[0] @ h + spread[1], -20, 2))
            return np.tanh(mean[0] @ h + mean[1] + deviation * random.standard_normal(len(deviation)))

        return squashed

    if algorithm in ("dqn", "qrdqn"):
        name = "q_net.q_net." if algorithm == "dqn" else "quantile_net.quantile_net."
        *hidden, (weight, bias) = layers(name)
        last = network(hidden, relu, scale)

        def greedy(x: np.ndarray, random: np.random.Generator) -> int:
            values = (weight @ last(x) + bias).reshape(-1, n_actions).mean(0)
            return int(random.integers(n_actions) if random.random() < EXPLORATION else values.argmax())

        return greedy

    if algorithm == "ars":  # linear, without a bias
        matrix = weights["action_net.weight"]
        last = network([(np.eye(matrix.shape[1]), np.zeros(()))], lambda x: x, scale)
        return lambda x, random: matrix @ last(x)

    last = network(layers("mlp_extractor.policy_net."), relu if rectified else np.tanh, scale)
    weight, bias = weights["action_net.weight"], weights["action_net.bias"]
    if "log_std" in weights:
        deviation = np.exp(weights["log_std"])

        def gaussian(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
            h = last(x)
            spread = deviation
            if deviation.ndim == 2:  # gSDE: noise that depends on the state
                spread = np.sqrt(h**2 @ deviation**2)
            return weight @ h + bias + spread * random.standard_normal(len(bias))

        return gaussian

    def draw(x: np.ndarray, random: np.random.Generator) -> int:
        logits = weight @ last(x) + bias
        return int((logits + random.gumbel(size=len(logits))).argmax())

    return draw


def files_of(repository: Path, start: str) -> Callable[[str], bytes | None]:
    """Read files whose path begins with ``start`` from the last commit of a clone, bare or not."""

    def read(rest: str) -> bytes | None:
        found = subprocess.run(["git", "-C", str(repository), "show", f"HEAD:{start}{rest}"], capture_output=True)
        return found.stdout if found.returncode == 0 else None

    return read


def agent_of(options: argparse.Namespace, env_id: str, name: str, space: Any) -> Act:
    """Return the function that acts; continuous actions are clipped by the caller."""
    if name == "random" and hasattr(space, "n"):
        return lambda x, random: random.integers(space.n)
    if name == "random":
        return lambda x, random: random.uniform(space.low, space.high)
    if name.startswith("trpo:"):
        file = f"expert_policies/modern/log_{SNAPSHOTS[env_id]}.h5"
        content = files_of(options.imitation, file)("")
        if content is None:
            raise SystemExit(f"{options.imitation} has no {file}")
        return snapshot(io.BytesIO(content), int(name.removeprefix("trpo:")))  # type: ignore[arg-type]
    folder = FOLDERS.get(env_id, env_id.replace("-v5", "-v3"))
    return published(files_of(options.agents, f"{name}/{folder}_1/{folder}"), name, getattr(space, "n", 0))


def record(options: argparse.Namespace, name: str) -> list[list[str]]:
    """Record one set; return a row of the table for each agent."""
    env_id, shares = SETS[name]
    done: list[Recorded] = []
    env = Recorder(make_env(env_id), done)
    space = env.action_space
    random = np.random.default_rng(0)
    rows = []
    for agent, share in shares.items():
        act = agent_of(options, env_id, agent, space)
        first, steps = len(done), 0
        while steps < share * options.steps:
            observation, _ = env.reset(seed=FIRST_SEED + len(done))
            over = False
            while not over:
                action = act(np.asarray(observation, np.float64), random)
                if not hasattr(space, "n"):
                    action = np.clip(action, space.low, space.high).astype(np.float32)
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
            steps += len(done[-1].rewards)
        returns = [episode.rewards.sum() for episode in done[first:]]
        rows.append([name, agent, f"{len(returns):,}", f"{steps:,}", f"{np.mean(returns):.0f} ± {np.std(returns):.0f}"])
    kind = "replay" if len(shares) > 1 else "medium"
    episodes = to_episodes(done, env, f"{env_id}-{kind}")
    write_hdf5(episodes, str(options.output / f"{env_id}-{kind}.hdf5"), sources=", ".join(shares))
    best = episodes.top(0.1).returns
    words = f"best tenth {best.mean():.0f}, best {best.max():.0f}"
    rows.append([name, "all", f"{len(episodes):,}", f"{episodes.n_steps:,}", words])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--imitation", type=Path, required=True, help="a clone of openai/imitation")
    parser.add_argument("--agents", type=Path, required=True, help="a clone of DLR-RM/rl-trained-agents")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100_000, help="of each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [row for name in options.sets for row in record(options, name)]
    print(markdown_table(["set", "agent", "episodes", "steps", "return"], rows))


if __name__ == "__main__":
    main()
