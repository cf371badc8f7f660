"""Random configs of both agents, each trained, stopped, resumed, evaluated again and exported.

    python -m benchmarks.reliability combinations [--cases 100] [--seed 0]

Options are drawn at random from CHOICES; a config may have any of them together. A run of each is trained undisturbed,
another is stopped by SIGTERM at a random step and resumed: they must have ended alike, to the bit (see ``kills``), or
the run must have said that its environments begin new episodes. evaluate.py must give the same returns once more,
export.py an export. A config that is refused must be so in one line, and leave no folder.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.kills import compare
from benchmarks.reliability.victims import play_randomly
from benchmarks.timing import markdown
from unroll.agents.common.callbacks import StopOnSignal
from unroll.agents.ppo.algorithm import NOT_SAVABLE
from unroll.commands import evaluate, export, train
from unroll.envs.datasets.recording import write_hdf5

COMMON: dict[str, Any] = {"backbone.d_model": 8, "device": "cpu", "threads": 1, "evaluation.episodes": 2}
GATED = dict(
    expansion=[1.0, 1.5], conv=[0, 3], learned_initial_state=["true"], highway=["true"], memory_span=[0.0, 5.0]
)
CANDIDATES = dict(candidate=["tanh", "identity"])
BACKBONES: dict[str, dict[str, list[Any]]] = {
    "mingru": GATED | CANDIDATES | dict(mlp_ratio=[0.0]),
    "minlstm": GATED | CANDIDATES | dict(normalize_gates=["false"]),
    "gru": dict(memory_span=[0.0], mlp_ratio=[0.0]),
    "lstm": dict(memory_span=[0.0]),
    "sharnn": dict(attention=["all", "none"], window=[1, 5], boom=[1]),
    "transformer": dict(n_heads=[1, 2], window=[1, 5], positions=["none"]),
    "mamba": dict(expansion=[1.0], d_state=[3], conv=[1]),
}
ENVS = ["CartPoleNoVel-v1", "TMaze10-v0", "HopperNoVel-v5", "HalfCheetah-v5", "Pendulum-v1", "Acrobot-v1"]
ENVS += ["RepeatFirstEasy-v0", "RepeatPreviousEasy-v0", "FrozenLake-v1"]
CHOICES: dict[str, dict[str, list[Any]]] = {
    "ppo": {
        "sequence_length": [4, 8],
        "net_arch": ["[]", "[8]"],
        "activation": ["relu"],
        "schedule": ["linear"],
        "clip_schedule": ["linear"],
        "target_kl": [0.01],
        "ent_coef": [0.01],
        "log_std_init": [-1.0],
        "log_every": [2],
        "sde_sample_freq": [3],
        "normalize_advantage": ["false"],
        "ortho_init": ["false"],
        "reset_on_done": ["false"],
        "evaluation.every": [64],
        "checkpoint_every": [50],
    }
    | {name: ["true"] for name in ("recompute_states", "separate_critic", "use_sde", "previous_action")}
    | {name: ["true"] for name in ("previous_reward", "normalize_observation", "normalize_reward")},
    "decision": {
        "optimizer": ["lamb"],
        "schedule": ["cosine"],
        "warmup_steps": [0, 5],
        "weight_decay": [0.1],
        "dropout": [0.0, 0.2],
        "tokens": ["interleaved"],
        "condition": ["none"],
        "previous_action": ["false"],
        "timestep_embedding": ["true"],
        "top_fraction": [0.5],
        "precision": ["bfloat16"],
        "log_every": [1, 3],
        "evaluation.memory": ["window", "carried"],
        "evaluation.every": [5],
        "checkpoint_every": [4, 5],
    },
}


class Broken(Exception):
    """A promise that was not kept, in words."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability combinations", description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="of each agent")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, broken = [], 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_hdf5(play_randomly("Pendulum-v1", 3), "pendulum.hdf5")
        write_hdf5(play_randomly("CartPole-v1", 20), "cartpole.hdf5")
        for agent in CHOICES:
            counts: collections.Counter[str] = collections.Counter()
            for number in range(options.cases):
                flags = draw(agent, random.Random(f"{options.seed}/{agent}/{number}"))
                try:
                    counts[check(flags)] += 1
                except Broken as error:
                    broken += 1
                    print(f"{error}\n    train.py {' '.join(flags)}", flush=True)
            rows.append({"agent": agent, "configs": options.cases, **{name: counts[name] for name in OUTCOMES}})
    print(f"\n{markdown(rows)}\n\nSeed {options.seed}; broken: {broken}.")
    return 1 if broken else 0


def draw(agent: str, chance: random.Random) -> list[str]:
    """The arguments of train.py; each option is there with a probability of a third."""

    def some(choices: dict[str, list[Any]], prefix: str = "") -> dict[str, Any]:
        return {f"{prefix}{key}": chance.choice(values) for key, values in choices.items() if chance.random() < 1 / 3}

    name = chance.choice(list(BACKBONES))
    config = COMMON | {"agent": agent, "seed": chance.randrange(100), "backbone.name": name}
    config |= {"backbone.n_layers": chance.choice([1, 2])} | some(BACKBONES[name], "backbone.options.")
    if agent == "ppo":
        n_envs = chance.choice([1, 2, 3])
        config |= {"env": chance.choice(ENVS), "n_envs": n_envs, "n_steps": 16, "n_epochs": 2, "steps": n_envs * 96}
    else:
        data = chance.choice(["pendulum.hdf5", "cartpole.hdf5"])
        config |= {
            "dataset": data,
            "context": chance.choice([1, 3, 8]),
            "batch_size": chance.choice([1, 4]),
            "steps": 14,
        }
    config |= some(CHOICES[agent])
    return [word for key, value in config.items() for word in (f"--{key}", str(value))]


OUTCOMES = ("refused", "the same bits", "new episodes")


def check(flags: list[str]) -> str:
    """One of OUTCOMES; Broken: what was not as promised."""
    for folder in ("whole", "cut"):
        shutil.rmtree(folder, ignore_errors=True)
    whole, cut = Path("whole"), Path("cut")
    code, _, errors = run(train.main, [*flags, "--run_dir", "whole"])
    if code == 2 and len(errors.strip().splitlines()) == 1 and not whole.exists():
        return OUTCOMES[0]
    expect(code == 0, f"exit code {code}: {errors}")
    steps = int(flags[flags.index("--steps") + 1])
    with stopped_at(random.Random(str(flags)).randrange(1, steps)):
        code, _, errors = run(train.main, [*flags, "--run_dir", "cut"])
    expect(code in (0, 143), f"after the signal exit code {code}: {errors}")
    code, said, errors = run(train.main, ["--resume", "true", "--run_dir", "cut"])
    expect(code == 0, f"resumed: {errors}")
    saved = NOT_SAVABLE not in said
    if saved:
        differences = compare(whole, cut)
        expect(not differences, f"other {', '.join(differences)}")
    returns = json.loads((whole / "evaluation.json").read_text())["results"]
    code, _, errors = run(evaluate.main, ["whole"])
    again = json.loads((whole / "evaluation.json").read_text())["results"]
    expect(code == 0 and again == returns, f"evaluated again: {errors or 'other returns'}")
    code, _, errors = run(export.main, ["whole", "--format", "pt2"])
    expect(code == 0 or "--memory carried" in errors, f"export: {errors}")
    return OUTCOMES[1 if saved else 2]


def expect(kept: bool, what: str) -> None:
    if not kept:
        raise Broken(what)


def run(command: Callable[[list[str]], int], arguments: list[str]) -> tuple[Any, str, str]:
    """Exit code, output and errors."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = command(arguments)
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
    return code, out.getvalue(), errors.getvalue()


@contextlib.contextmanager
def stopped_at(step: int) -> Any:
    """While it lasts, the first learning that comes to this step is sent SIGTERM there."""
    on_step, sent = StopOnSignal._on_step, False

    def heard(callback: StopOnSignal) -> bool:
        nonlocal sent
        if callback.num_timesteps >= step and not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step(callback)

    StopOnSignal._on_step = heard  # type: ignore[method-assign]
    try:
        yield
    finally:
        StopOnSignal._on_step = on_step  # type: ignore[method-assign]
