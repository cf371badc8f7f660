"""A case: what is done to which file, who reads it, and what is wrong with how that ends."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from tests.reliability import forks, victims

CANARY = "canary"  # the file that code in an input would make
SECONDS = 30  # a child that takes longer has hung
ACCEPTED = 0
REFUSED = 2


@dataclasses.dataclass
class Case:
    """An input: ``damage`` changes the file at ``path``, and one of ``readers`` is given ``argument``.

    The line that refuses it must contain one of ``names``. By default the commands that read the file must name it.
    """

    path: str
    what: str
    damage: Callable[[Path], Any]
    names: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    argument: str = ""

    def __post_init__(self) -> None:
        readers, argument, name = victims.reading(self.path)
        self.readers = self.readers or readers
        self.argument = self.argument or argument
        self.names = self.names or (name,)


def draw(kinds: Mapping[str, Callable[[Random], Case]], number: int, seed: int) -> tuple[str, Case]:
    """Draw case ``number``. The kinds take turns, and the rest depends on (seed, number) alone."""
    kind = list(kinds)[number % len(kinds)]
    return kind, kinds[kind](Random(f"{seed}/{number}"))


def attempt(
    case: Case, read: Callable[[str], int], healthy: Path, folder: Path, most_bytes: int = 1 << 30
) -> tuple[int, str]:
    """Let a child damage a copy in ``folder``, which is new, and read it.

    Returns its exit code, ACCEPTED or REFUSED where all is well, and what is wrong.
    """
    folder.mkdir()
    for name in {case.path.split("/")[0], "own.hdf5"}:  # the run of a decision agent names its recording
        copy = shutil.copytree if (healthy / name).is_dir() else shutil.copy
        copy(healthy / name, folder / name)

    def damage_and_read() -> int:
        case.damage(folder / case.path)
        return read(case.argument)

    code, stderr, grown = forks.run(damage_and_read, folder, SECONDS)
    lines = len(stderr.strip().splitlines())
    faults = {
        f"took more than {SECONDS} s, or was killed": code == forks.LATE,
        f"exit code {code}": code not in (ACCEPTED, REFUSED),
        f"{lines} lines": lines != (1 if code == REFUSED else 0),
        "a long line": len(stderr) > 1000,
        f"names none of {case.names}": code == REFUSED and not any(name in stderr for name in case.names),
        "ran code": (folder / CANARY).exists(),
        "left a run folder": code == REFUSED and (folder / "new").exists(),
        f"used {grown >> 20} MiB": grown > most_bytes,
    }
    found = [fault for fault, is_one in faults.items() if is_one]
    if not found:
        return code, ""
    return code, f"{', '.join(found)}\n{stderr[-3000:]}"
