"""Train random configs of both agents, stop them, resume them, evaluate them again and export them.

    python -m tests.reliability combinations [--cases 100] [--seed 0]

A run of each config is trained undisturbed, another is stopped by SIGTERM at a random step and resumed: they must have
ended alike, to the bit (see ``kills``), or the run must have said that its environments begin new episodes. ``unroll
evaluate`` must give the same returns once more, ``unroll export`` an export. A config that is refused must be so in one
line, and leave no folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.reliability.kills import compare, outcome
from tests.reliability.victims import play_randomly
from unroll.agents.common.callbacks import StopOnSignal
from unroll.commands import evaluate, export, train
from unroll.envs.datasets.recording import write_hdf5
from unroll.tables import markdown_table

# Options and their values. Each option is in a third of the configs, whatever the others are.
GATED = (
    "expansion=1.0|1.5 conv=0|3 learned_initial_state=true highway=true memory_span=0.0|5.0 candidate=tanh|identity "
    "signed=true unit_variance=true"
)
BACKBONES = {
    "mingru": f"{GATED} mlp_ratio=0.0",
    "minlstm": f"{GATED} normalize_gates=false",
    "gru": "memory_span=0.0 mlp_ratio=0.0",
    "lstm": "memory_span=0.0",
    "sharnn": "attention=all|none window=1|5 boom=1",
    "transformer": "n_heads=1|2 window=1|5 positions=none",
    "deltanet": "n_heads=1|2 conv=1 memory_span=0.0 signed=true",
    "mamba": "expansion=1.0 d_state=3 conv=1",
}
ENVS = ["CartPoleNoVel-v1", "TMaze10-v0", "HopperNoVel-v5", "HalfCheetah-v5", "Pendulum-v1", "Acrobot-v1"]
ENVS += ["RepeatFirstEasy-v0", "RepeatPreviousEasy-v0", "FrozenLake-v1"]
CHOICES = {
    "ppo": "sequence_length=4|8 net_arch=[]|[8] activation=relu schedule=linear clip_schedule=linear target_kl=0.01 "
    "ent_coef=0.01 log_std_init=-1.0 log_every=2 sde_sample_freq=3 normalize_advantage=false ortho_init=false "
    "reset_on_done=false evaluation.every=64 checkpoint_every=50 recompute_states=true separate_critic=false "
    "use_sde=true previous_action=true previous_reward=true normalize_observation=true normalize_reward=true",
    "decision": "optimizer=lamb schedule=cosine warmup_steps=0|5 weight_decay=0.1 dropout=0.0|0.2 tokens=interleaved "
    "condition=best|return action_modes=0|5 previous_action=false timestep_embedding=true top_fraction=0.5 "
    "precision=bfloat16 log_every=1|3 "
    "evaluation.memory=window|carried evaluation.every=5 checkpoint_every=4|5",
}
COMMON = {"backbone.d_model": 8, "device": "cpu", "threads": 1, "evaluation.episodes": 2}
REFUSED, SAME, ANEW = OUTCOMES = ("refused", "the same bits", "new episodes")
NOT_SAVABLE = "cannot be saved, so every environment begins a new episode"  # what such a run says


class Broken(Exception):
    """A promise that was not kept, in words."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability combinations", description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="of each agent")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    broken = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_hdf5(play_randomly("Pendulum-v1", 3), "pendulum.hdf5")
        write_hdf5(play_randomly("CartPole-v1", 20), "cartpole.hdf5")
        for agent in CHOICES:
            counts: Counter[str] = Counter()
            for number in range(options.cases):
                flags = draw(agent, random.Random(f"{options.seed}/{agent}/{number}"))
                try:
                    counts[check(flags)] += 1
                except Broken as error:
                    broken += 1
                    print(f"{error}\n    unroll train {' '.join(flags)}", flush=True)
            rows.append([agent, str(options.cases), *[str(counts[outcome]) for outcome in OUTCOMES]])
    table = markdown_table(["agent", "configs", *OUTCOMES], rows)
    print(f"\n{table}\n\nSeed {options.seed}; broken: {broken}.")
    return int(broken > 0)


def draw(agent: str, chance: random.Random) -> list[str]:
    """Draw the arguments of ``unroll train``."""
    name = chance.choice(list(BACKBONES))
    config: dict[str, Any] = COMMON | {"agent": agent, "seed": chance.randrange(100), "backbone.name": name}
    config["backbone.n_layers"] = chance.choice([1, 2])
    config |= draw_options(BACKBONES[name], chance, "backbone.options.")
    if agent == "ppo":
        n_envs = chance.choice([1, 2, 3])
        config |= {"env": chance.choice(ENVS), "n_envs": n_envs, "n_steps": 16, "n_epochs": 2, "steps": n_envs * 96}
    else:
        config["dataset"] = chance.choice(["pendulum.hdf5", "cartpole.hdf5"])
        config["context"] = chance.choice([1, 3, 8])
        config["batch_size"] = chance.choice([1, 4])
        config["steps"] = 14
    config |= draw_options(CHOICES[agent], chance)

    flags = []
    for key, value in config.items():
        flags += [f"--{key}", str(value)]
    return flags


def draw_options(choices: str, chance: random.Random, prefix: str = "") -> dict[str, str]:
    """Draw a third of the options, and a value for each."""
    drawn = {}
    for choice in choices.split():
        key, values = choice.split("=")
        if chance.random() < 1 / 3:
            drawn[f"{prefix}{key}"] = chance.choice(values.split("|"))
    return drawn


def check(flags: list[str]) -> str:
    """Train, stop, resume, evaluate and export, and return one of OUTCOMES.

    Raises:
        Broken: something was not as promised.
    """
    whole = Path("whole")
    cut = Path("cut")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.rmtree(cut, ignore_errors=True)
    code, _, errors = run(train.main, [*flags, "--run_dir", "whole"])
    if code == 2 and len(errors.strip().splitlines()) == 1 and not whole.exists():
        return REFUSED
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

    returns = outcome(whole)["returns"]
    code, _, errors = run(evaluate.main, ["whole"])
    expect(code == 0 and outcome(whole)["returns"] == returns, f"evaluated again: {errors or 'other returns'}")
    code, _, errors = run(export.main, ["whole", "--format", "pt2"])
    expect(code == 0 or "--memory carried" in errors, f"export: {errors}")
    return SAME if saved else ANEW


def expect(kept: bool, what: str) -> None:
    if not kept:
        raise Broken(what)


def run(command: Callable[[list[str]], int], arguments: list[str]) -> tuple[Any, str, str]:
    """Run a command in this process and return its exit code, output and errors."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code: Any = command(arguments)
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
    return code, out.getvalue(), errors.getvalue()


def stopped_at(step: int) -> contextlib.AbstractContextManager[Any]:
    """Send SIGTERM, once, to a run that comes to ``step`` while this lasts."""
    on_step = StopOnSignal._on_step

    def on_step_after_signal(callback: StopOnSignal) -> bool:
        if callback.num_timesteps >= step and callback.received is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step(callback)

    return mock.patch.object(StopOnSignal, "_on_step", on_step_after_signal)
