"""Damage inputs by the hundred: python -m tests.reliability malformed [--cases 500] [--seed 0]

Checkpoints and run folders of both agents, configs, HDF5 recordings and Minari datasets are damaged in fifteen ways and
given to the commands that read them. Each must be refused with exit code 2 and one line on standard error that names
the file, or the field of a config: no traceback, no warning, nothing executed, nothing allocated, nothing left to wait
for. The exit code is 1 where one was not.

What nobody can see is no case: a bit of a number in a file without checksums (another tool's HDF5, a config's 3 that
became a 7).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from tests.reliability import damage, hostile, victims
from tests.reliability.cases import ACCEPTED, Case, attempt, draw
from tests.reliability.damage import other_bytes
from unroll.tables import markdown_table

HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"
KINDS: dict[str, Callable[[Random], Case]] = {
    "truncated": partial(other_bytes, content=damage.truncated, signed=0),
    "bit-flipped": partial(other_bytes, content=damage.flipped, signed=0),
    "garbage": partial(other_bytes, content=lambda rng, file: rng.randbytes(rng.choice((10, 100, 5000)))),
    "empty": partial(other_bytes, content=lambda rng, file: b""),
    "HTML page": partial(other_bytes, content=lambda rng, file: HTML * rng.choice((1, 100))),
    "missing": damage.missing,
    "wrong shapes": damage.wrong_shapes,
    "wrong types": damage.wrong_types,
    "NaN and infinity": damage.not_finite,
    "evil pickle": partial(other_bytes, content=damage.evil_pickle),
    "evil entry point": hostile.evil_entry_point,
    "absurd sizes": hostile.absurd_sizes,
    "nesting, aliases, tags": hostile.bombs,
    "ways out of the folder": hostile.ways_out,
    "signed nonsense": hostile.nonsense,
}
CONTROLS = (*victims.TENSOR_FILES, *victims.CONFIGS, *victims.RECORDINGS, victims.MINARI_DATA)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability malformed", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some cases, without the undamaged inputs")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    counts = {kind: [0, 0] for kind in KINDS}  # cases, refused
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        healthy = victims.make(top)
        controls = "" if options.only else check_controls(healthy, top)
        for number in options.only or range(options.cases):
            kind, case = draw(KINDS, number, options.seed)
            reader = case.readers[number // len(KINDS) % len(case.readers)]
            code, faults = attempt(case, victims.READERS[reader], healthy, top / str(number))
            if code == ACCEPTED:
                faults = f"accepted, {faults}"
            counts[kind][0] += 1
            counts[kind][1] += not faults
            if faults:
                print(f"case {number}, {kind}: {reader}, {case.what}, {case.path}: {faults}", flush=True)

    cases, refused = (sum(column) for column in zip(*counts.values(), strict=True))
    rows = [[kind, str(n), str(good)] for kind, (n, good) in counts.items() if n]
    rows.append(["**all**", f"**{cases}**", f"**{refused}**"])
    print(markdown_table(["kind", "cases", "refused in one line"], rows))
    print(f"\n{controls}Seed {options.seed}, {time.monotonic() - began:.0f} s.")
    return int(refused < cases)


def check_controls(healthy: Path, top: Path) -> str:
    """Say that undamaged inputs are accepted: a command that refuses everything would pass all else."""
    n = 0
    for path in CONTROLS:
        case = Case(path, "control", lambda file: None)
        for reader in case.readers:
            n += 1
            code, faults = attempt(case, victims.READERS[reader], healthy, top / f"control{n}")
            if code != ACCEPTED:
                raise SystemExit(f"{reader} refuses an undamaged {path}: {faults}")
    return f"{n} undamaged inputs, all accepted. "
