"""What an exported policy costs, and whether it is the policy: against PyTorch, for every backbone and both agents.

    python -m benchmarks.export [--steps N] [--inductor mingru] [--output FILE.json]    from the root of the repository

Each agent learns for a moment, so that it has statistics, is saved, and is exported by ``unroll export`` in both
formats. Then ``predict`` plays 1 and 8 environments, while the exported step sees the same observations and carries its
own state.

The first table has the largest difference of the actions over ``--steps`` steps (of discrete ones, the share that
differ), and how many episodes began. The second has the microseconds for one step of all the environments, from
observation arrays to actions on one thread: by ``predict``, by run.py with ONNX Runtime, and by run.py with the
exported program as PyTorch loads it. For the backbones after ``--inductor`` there is also the program as AOTInductor
compiles it, which takes a minute each. The candidates take turns, call by call.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.timing import markdown, medians, report
from unroll.agents import DecisionAgent, schemas
from unroll.agents.ppo.checkpoint import save_ppo
from unroll.agents.ppo.player import PPOActor
from unroll.agents.ppo.training import make_ppo
from unroll.commands import export
from unroll.configs import load_config, plain_config
from unroll.envs import load_episodes
from unroll.envs.make import make_env
from unroll.envs.wrappers import ReturnToGo
from unroll.export.runner import Policy
from unroll.policies.backbones import BACKBONES


class Row:
    """A row of environments that step together, each through its own episodes. A call gives what ``predict`` sees."""

    def __init__(self, make: Callable[[], gym.Env], n: int, target: float | None = None):
        self.options = None
        if target is not None:
            self.options = {"target_return": target}
        self.envs = [make() for _ in range(n)]
        self.observations = [env.reset(seed=i, options=self.options)[0] for i, env in enumerate(self.envs)]
        self.start = np.ones(n, bool)
        self.episodes = n

    def __call__(self) -> Any:
        first = self.observations[0]
        if not isinstance(first, dict):
            return np.stack(self.observations)
        rows = {}
        for key in first:
            rows[key] = np.stack([observation[key] for observation in self.observations])
        return rows

    def masks(self) -> dict[str, np.ndarray]:
        """Return the action masks as an argument of ``predict``; nothing if the environment has none."""
        if not self.envs[0].has_wrapper_attr("action_masks"):
            return {}
        return {"action_masks": np.stack([env.get_wrapper_attr("action_masks")() for env in self.envs])}

    def step(self, actions: np.ndarray) -> None:
        for i, env in enumerate(self.envs):
            self.observations[i], _, terminated, truncated, _ = env.step(actions[i])
            self.start[i] = terminated or truncated
            if self.start[i]:
                self.reset(i)

    def reset(self, i: int) -> None:
        """Begin an episode in environment i, whatever the last one was doing."""
        self.observations[i] = self.envs[i].reset(options=self.options)[0]
        self.start[i] = True
        self.episodes += 1


def shown(agent: Any, row: Row) -> dict[str, np.ndarray]:
    """Return the inputs of the exported step, all but the state."""
    observation = row()
    if isinstance(agent, DecisionAgent):
        observation |= {key: observation[key][:, 0] for key in ("return_to_go", "timestep")}
    elif isinstance(observation, dict):
        observation = {f"observation.{key}": value for key, value in observation.items()}
    else:
        observation = {"observation": observation}
    return observation | row.masks() | {"reset": row.start.copy()}


def largest_difference(agent: Any, exported: Policy, row: Row, steps: int) -> float:
    """Return the largest difference of the actions while ``agent`` acts; of discrete ones, the share that differ."""
    state = None
    differences = []
    for t in range(steps):
        # The agent acts; the exported policy only says what it would do.
        actions, state = agent.predict(row(), state, row.start, deterministic=True, **row.masks())
        found = exported(shown(agent, row))
        assert (found.dtype, found.shape) == (actions.dtype, actions.shape)
        if actions.dtype.kind == "f":
            differences.append(np.abs(found - actions).max())
        else:
            differences.append((found != actions).mean())
        row.step(actions)

        # One environment alone begins anew, in case none has ended.
        if t == steps // 2:
            row.reset(0)
    if actions.dtype.kind == "f":
        return float(np.max(differences))
    return float(np.mean(differences))


def hopper(n: int) -> gym.Env:
    """Make a Hopper. One alone goes on for 1,000 steps even if it has fallen; of several, each begins anew then."""
    return make_env("Hopper-v5", terminate_when_unhealthy=n > 1)


def decision_agent(backbone: str, folder: Path) -> tuple[Any, Callable[[int], Row]]:
    """Save a decision agent; return it, and a function that makes its environments."""
    data = load_episodes("embedded:hopper-v5-replay")
    agent = DecisionAgent(data, device="cpu", policy_kwargs=dict(backbone=backbone))
    agent.learn(5)
    agent.save(folder)
    return agent, lambda n: Row(lambda: ReturnToGo(hopper(n)), n, target=3600.0)


def ppo_agent(backbone: str, folder: Path, env: str) -> tuple[Any, Callable[[int], Row]]:
    """Save an actor of PPO; return it, and a function that makes its environments."""
    flags = ["--agent", "ppo", "--env", env, "--backbone.name", backbone, "--n_epochs", "1", "--device", "cpu"]
    # The statistics of VecNormalize are part of the export.
    config = load_config([*flags, "--normalize_observation", "true"], schemas())
    agent = make_ppo(config, print)
    agent.learn(1024)
    save_ppo(agent, folder, plain_config(config))

    def make(n: int) -> gym.Env:
        if env == "Hopper-v5":
            return hopper(n)
        return make_env(env)

    return PPOActor(agent, agent.get_vec_normalize_env()), lambda n: Row(lambda: make(n), n)


CASES: dict[str, Callable[[str, Path], tuple[Any, Callable[[int], Row]]]] = {
    "decision, Hopper-v5": decision_agent,
    "ppo, Hopper-v5": lambda backbone, folder: ppo_agent(backbone, folder, "Hopper-v5"),
    "ppo, CartPoleNoVel-v1": lambda backbone, folder: ppo_agent(backbone, folder, "CartPoleNoVel-v1"),
}


def compiled(folder: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Return the exported program as AOTInductor compiles it for this machine."""
    program = torch.export.load(folder / "policy.pt2")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder.with_suffix(".pt2")))
    model = torch._inductor.aoti_load_package(path)

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(array) for array in feed.values()]
        return [output.numpy() for output in model(*tensors)]

    return run


def one(case: str, backbone: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a row of each table."""
    agent, make_row = CASES[case](backbone, folder / "run")
    for format in ("onnx", "pt2"):
        with contextlib.redirect_stdout(None):
            if export.main([str(folder / "run"), "--format", format]) != 0:
                raise SystemExit(f"{case} {backbone}: no {format}")
    inductor = None
    if backbone in options.inductor:
        inductor = compiled(folder / "run" / "pt2")

    same: dict[str, Any] = {"agent": case, "backbone": backbone}
    cost: dict[str, Any] = dict(same)
    for batch in (1, 8):
        # First whether the actions are the same.
        exported = {format: Policy(folder / "run" / format, batch) for format in ("onnx", "pt2")}
        for format, policy in exported.items():
            row = make_row(batch)
            steps = options.steps
            if format == "pt2":
                steps //= 10  # its operations are PyTorch's
            same[f"{format} × {batch}"] = f"{largest_difference(agent, policy, row, steps):.1e}"
            if format == "onnx":
                same[f"episodes × {batch}"] = row.episodes

        # Then what a step costs, also as AOTInductor compiles it.
        if inductor is not None:
            exported["inductor"] = Policy(folder / "run" / "pt2", batch)
            exported["inductor"].model = inductor
        cost |= microseconds(agent, exported, make_row(batch), batch, options.repeats)
    return same, cost


def microseconds(agent: Any, exported: dict[str, Policy], row: Row, batch: int, repeats: int) -> dict[str, Any]:
    """Measure a step of all environments in the midst of their episodes, by ``predict`` and by each exported policy."""
    observation = row()
    masks = row.masks()
    inputs = shown(agent, row)
    going = np.zeros(batch, bool)
    inputs["reset"] = going
    _, state = agent.predict(observation, None, ~going, **masks)

    def predict() -> None:
        nonlocal state
        _, state = agent.predict(observation, state, going, **masks)

    # One call at a time: it is over before another process wants the core.
    runs = {"torch": predict} | {name: functools.partial(policy, inputs) for name, policy in exported.items()}
    seconds = medians(runs, repeats, settle=True)
    cells = {f"{name} × {batch}": 1e6 * value for name, value in seconds.items()}
    cells[f"torch / onnx × {batch}"] = seconds["torch"] / seconds["onnx"]
    return cells


def aligned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give all rows the same columns: not every row has those of AOTInductor."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    return [{column: row.get(column, "–") for column in columns} for row in rows]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--inductor", nargs="+", choices=list(BACKBONES), default=[], help="needs a C++ compiler")
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    differences = []
    costs = []
    for case in options.cases:
        for backbone in options.backbones:
            with tempfile.TemporaryDirectory() as folder:
                same, cost = one(case, backbone, options, Path(folder))
            differences.append(same)
            costs.append(cost)

    title = f"Largest difference of an action to PyTorch's over {options.steps} steps (pt2: a tenth)"
    print(f"{title}\n\n{markdown(differences)}\n")
    report("µs for a step of all environments, one thread", aligned(costs), options.output, same=differences)


if __name__ == "__main__":
    main()
