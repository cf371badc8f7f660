"""Damaged inputs, by the hundred: python -m benchmarks.reliability malformed [--cases 500] [--seed 0]

Checkpoints and run folders of both agents, configs, HDF5 recordings and Minari datasets are damaged in fifteen ways and
given to the commands that read them. Each must be refused with exit code 2 and one line on standard error that names
the file, or the field of a config: no traceback, no warning, nothing executed, nothing allocated, nothing left to wait
for. The exit code is 1 where one was not.

What nobody can see is no case: a bit of a number in a file without checksums (another tool's HDF5, a config's 3 that
became a 7). Our own recordings, checkpoints and the saved configs of runs carry checksums, and there every bit is one.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.reliability import damage, forks, hostile, values
from benchmarks.reliability.cases import Case
from benchmarks.reliability.victims import READERS, build

KINDS = {
    "truncated": damage.truncated,
    "bit-flipped": damage.flipped,
    "garbage": damage.garbage,
    "empty": damage.empty,
    "HTML page": damage.html,
    "missing": damage.missing,
    "wrong shapes": values.wrong_shapes,
    "wrong types": values.wrong_types,
    "NaN and infinity": values.not_finite,
    "evil pickle": damage.evil_pickle,
    "evil entry point": hostile.evil_entry_point,
    "absurd sizes": hostile.absurd_sizes,
    "nesting, aliases, tags": hostile.bombs,
    "ways out of the folder": hostile.ways_out,
    "signed nonsense": hostile.nonsense,
}
SECONDS = 30  # a case that takes longer has hung


def draw(number: int, seed: int) -> tuple[str, Case]:
    """Case ``number``: its kind, by turns, and the case, which depends on (seed, number) alone."""
    kind = list(KINDS)[number % len(KINDS)]
    return kind, KINDS[kind](random.Random(f"{seed}/{number}"))


def try_case(case: Case, healthy: Path, folder: Path) -> str:
    """What is wrong with how the case was refused; nothing: it was refused as it should be. ``folder`` is new."""
    folder.mkdir()
    for name in {case.victim, "own.hdf5"}:  # the run of a decision agent names its recording
        source = healthy / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    case.damage(folder)
    outcome = forks.run(lambda: READERS[case.reader](case.argument), folder, SECONDS)
    lines = outcome.stderr.strip().splitlines()
    faults = {
        f"took more than {SECONDS} s": outcome.late,
        f"exit code {outcome.code}": outcome.code != 2,
        f"{len(lines)} lines": len(lines) != 1,
        f"names none of {', '.join(case.names)}": not any(name in outcome.stderr for name in case.names),
        "ran code": (folder / damage.CANARY).exists(),
        f"used {outcome.grown >> 20} MiB": outcome.grown > forks.GROWTH,
        "left a run folder": (folder / "new").exists(),
        "long": len(outcome.stderr) > 1000,
    }
    shutil.rmtree(folder)
    found = ", ".join(fault for fault, is_one in faults.items() if is_one)
    return f"{found}\n{outcome.stderr[-1500:]}" if found else ""


def controls(healthy: Path, folder: Path) -> list[str]:
    """Undamaged inputs that were refused: a command that refuses everything would pass all else."""
    refused = []
    for number, (victim, reader, argument) in enumerate(CONTROLS):
        case = Case("control", victim, reader, argument, lambda folder: None, ("",))
        fault = try_case(case, healthy, folder / f"control{number}")
        if "exit code 0" not in fault:
            refused.append(f"{reader} {argument}: {fault}")
    return refused


CONTROLS = (
    ("decision_run", "evaluate.py", "decision_run"),
    ("ppo_run", "evaluate.py", "ppo_run"),
    ("decision_run", "train.py --resume", "decision_run"),
    ("ppo_run", "train.py --resume", "ppo_run"),
    ("decision_run", "unroll.commands.record --run", "decision_run"),
    ("ppo_run", "unroll.commands.record --run", "ppo_run"),
    ("decision.yaml", "train.py --config", "decision.yaml"),
    ("ppo.yaml", "train.py --config", "ppo.yaml"),
    ("own.hdf5", "train.py --dataset", "own.hdf5"),
    ("foreign.hdf5", "train.py --dataset", "foreign.hdf5"),
    ("minari_datasets_path", "train.py --dataset", "minari:unit/pendulum-v0"),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability malformed", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="without the undamaged inputs")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some cases alone")
    options = parser.parse_args(arguments)
    began, failures = time.monotonic(), []
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        healthy = forks.made(top, build)
        shutil.rmtree(healthy / "unroll_cache", ignore_errors=True)
        quick = options.quick or options.only
        rejected = [] if quick else controls(healthy, top)
        for number in options.only or range(options.cases):
            kind, case = draw(number, options.seed)
            fault = try_case(case, healthy, top / str(number))
            counts[kind][0] += 1
            counts[kind][1] += not fault
            if fault:
                failures.append(f"case {number}, {kind}: {case.reader}, {case.what}: {fault}")
                print(failures[-1], flush=True)
    print("| kind | cases | refused in one line |\n|---|---|---|")
    for kind, (n, refused) in counts.items():
        print(f"| {kind} | {n} | {refused} |")
    total, refused = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"| **all** | **{total}** | **{refused}** |\n")
    if not quick:
        print(f"{len(CONTROLS)} undamaged inputs, {'not all accepted' if rejected else 'all accepted'}.", end=" ")
    print(f"Seed {options.seed}, {time.monotonic() - began:.0f} s.")
    for failure in failures + rejected:
        print(f"\nFAILED {failure}")
    return int(bool(failures or rejected))


def warm_up() -> None:
    """Import everything that a command imports later, on one thread."""
    import minari  # noqa: F401
    import torch
    import torch.utils.tensorboard

    from unroll.agents.evaluation import scoring  # noqa: F401
    from unroll.policies.backbones import count_parameters

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    count_parameters("mingru", 8, 1, {})  # as an optimizer does, this imports a part of PyTorch that takes seconds
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
