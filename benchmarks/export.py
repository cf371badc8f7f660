"""What an exported policy costs, and whether it is the policy: against PyTorch, for every backbone and both agents.

    python -m benchmarks.export [--steps N] [--inductor mingru] [--output FILE.json]    from the root of the repository

Each agent learns for a moment, so that its statistics are not those of nothing, is saved, and is exported by export.py
in both formats. Then 1 and 8 environments are played by ``predict``, while the exported step sees the same observations
and carries its own state: the first table has the largest difference of the actions over ``--steps`` steps (for
discrete ones, how many were others) and how many episodes began. The second has microseconds for one step of all the
environments, observation arrays in and actions out, on one thread: ``predict``, run.py with ONNX Runtime, and run.py
with the exported program as PyTorch loads it; for the backbones after ``--inductor``, which takes a minute each, also
as AOTInductor compiles it. The candidates take turns, call by call.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable
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
    """Environments that step together, each through episodes of its own, as ``predict`` sees them."""

    def __init__(self, make: Callable[[], gym.Env], n: int, target: float | None = None):
        self.options = None if target is None else {"target_return": target}
        self.envs = [make() for _ in range(n)]
        self.observations = [env.reset(seed=i, options=self.options)[0] for i, env in enumerate(self.envs)]
        self.start, self.episodes = np.ones(n, bool), n

    def __call__(self) -> Any:
        first = self.observations[0]
        if not isinstance(first, dict):
            return np.stack(self.observations)
        return {key: np.stack([observation[key] for observation in self.observations]) for key in first}

    def masks(self) -> dict[str, np.ndarray]:
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
        self.start[i], self.episodes = True, self.episodes + 1


def shown(agent: Any, row: Row) -> dict[str, np.ndarray]:
    """The inputs of the exported step, all but the state."""
    observation = row()
    if isinstance(agent, DecisionAgent):
        observation |= {key: observation[key][:, 0] for key in ("return_to_go", "timestep")}
    elif isinstance(observation, dict):
        observation = {f"observation.{key}": value for key, value in observation.items()}
    else:
        observation = {"observation": observation}
    return observation | row.masks() | {"reset": row.start.copy()}


def largest_difference(agent: Any, exported: Policy, row: Row, steps: int) -> float:
    """Of the actions, along what ``agent`` does; of discrete ones, the share that are others."""
    state, differs = None, []
    for t in range(steps):
        actions, state = agent.predict(row(), state, row.start, deterministic=True, **row.masks())
        found = exported(shown(agent, row))
        assert (found.dtype, found.shape) == (actions.dtype, actions.shape)
        differs.append(np.abs(found - actions).max() if actions.dtype.kind == "f" else (found != actions).mean())
        row.step(actions)
        if t == steps // 2:
            row.reset(0)  # one environment alone, should none have ended
    return float(np.max(differs) if actions.dtype.kind == "f" else np.mean(differs))


def hopper(n: int) -> gym.Env:
    """One alone goes on for 1,000 steps, also where it has fallen; of several each begins anew then."""
    return make_env("Hopper-v5", terminate_when_unhealthy=n > 1)


def decision_agent(backbone: str, folder: Path) -> tuple[Any, Callable[[int], Row]]:
    data = load_episodes("embedded:hopper-v5-replay")
    agent = DecisionAgent(data, device="cpu", policy_kwargs=dict(backbone=backbone))
    agent.learn(5)
    agent.save(folder)
    return agent, lambda n: Row(lambda: ReturnToGo(hopper(n)), n, target=3600.0)


def ppo_agent(backbone: str, folder: Path, env: str) -> tuple[Any, Callable[[int], Row]]:
    flags = ["--agent", "ppo", "--env", env, "--backbone.name", backbone, "--n_epochs", "1", "--device", "cpu"]
    config = load_config([*flags, "--normalize_observation", "true"], schemas())
    agent = make_ppo(config, print)
    agent.learn(1024)
    save_ppo(agent, folder, plain_config(config))
    make = hopper if env == "Hopper-v5" else lambda n: make_env(env)
    return PPOActor(agent, agent.get_vec_normalize_env()), lambda n: Row(lambda: make(n), n)


CASES: dict[str, Callable[[str, Path], tuple[Any, Callable[[int], Row]]]] = {
    "decision, Hopper-v5": decision_agent,
    "ppo, Hopper-v5": lambda backbone, folder: ppo_agent(backbone, folder, "Hopper-v5"),
    "ppo, CartPoleNoVel-v1": lambda backbone, folder: ppo_agent(backbone, folder, "CartPoleNoVel-v1"),
}


def compiled(folder: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """The exported program as AOTInductor compiles it for this machine."""
    program = torch.export.load(folder / "policy.pt2")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder.with_suffix(".pt2")))
    model = torch._inductor.aoti_load_package(path)
    return lambda feed: [x.numpy() for x in model(*map(torch.from_numpy, feed.values()))]


def one(case: str, backbone: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of each table."""
    agent, make_row = CASES[case](backbone, folder / "run")
    for format in ("onnx", "pt2"):
        with contextlib.redirect_stdout(None):
            if export.main([str(folder / "run"), "--format", format]) != 0:
                raise SystemExit(f"{case} {backbone}: no {format}")
    same: dict[str, Any] = {"agent": case, "backbone": backbone}
    cost: dict[str, Any] = dict(same)
    inductor = compiled(folder / "run" / "pt2") if backbone in options.inductor else None
    for batch in (1, 8):
        exported = {format: Policy(folder / "run" / format, batch) for format in ("onnx", "pt2")}
        for format, policy in exported.items():
            row = make_row(batch)
            steps = options.steps if format == "onnx" else options.steps // 10  # the same operations
            same[f"{format} × {batch}"] = f"{largest_difference(agent, policy, row, steps):.1e}"
            if format == "onnx":
                same[f"episodes × {batch}"] = row.episodes
        if inductor is not None:
            exported["inductor"] = Policy(folder / "run" / "pt2", batch)
            exported["inductor"].model = inductor
        cost |= microseconds(agent, exported, make_row(batch), batch, options.repeats)
    return same, cost


def microseconds(agent: Any, exported: dict[str, Policy], row: Row, batch: int, repeats: int) -> dict[str, Any]:
    observation, masks, inputs = row(), row.masks(), shown(agent, row)
    inputs["reset"] = going = np.zeros(batch, bool)
    memory = [agent.predict(observation, None, ~going, **masks)[1]]

    def predict() -> None:
        memory[0] = agent.predict(observation, memory[0], going, **masks)[1]

    # one call at a time: it is over before another process wants the core
    runs = {"torch": predict} | {name: functools.partial(policy, inputs) for name, policy in exported.items()}
    seconds = medians(runs, repeats, settle=True)
    us = {f"{name} × {batch}": 1e6 * value for name, value in seconds.items()}
    return us | {f"torch / onnx × {batch}": seconds["torch"] / seconds["onnx"]}


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
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for case in options.cases:
        for backbone in options.backbones:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(one(case, backbone, options, Path(folder)))
    same, cost = (list(table) for table in zip(*rows, strict=True))
    print(
        f"Largest difference of an action to PyTorch's over {options.steps} steps (pt2: a tenth)\n\n{markdown(same)}\n"
    )
    columns = list(dict.fromkeys(key for row in cost for key in row))  # not every row has AOTInductor's
    cost = [{key: row.get(key, "–") for key in columns} for row in cost]
    report("µs for a step of all environments, one thread", cost, options.output, same=same)


if __name__ == "__main__":
    main()
