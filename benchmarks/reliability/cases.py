"""A damaged input: what it is, how it is made, who reads it, and what the one line must name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.reliability.victims import MINARI, MINARI_DATA, OF_RUNS, checkpoint_of
from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS

Damage = Callable[[Path], None]  # of one file or checkpoint folder


@dataclasses.dataclass
class Case:
    """``victim`` is a file or folder of ``victims.build``, which ``reader`` is given as ``argument`` once ``damage``
    was done to the folder that holds its copy; the line that refuses it contains one of ``names``."""

    what: str
    victim: str
    reader: str
    argument: str
    damage: Damage
    names: tuple[str, ...]


@dataclasses.dataclass
class Target:
    """A file that somebody reads: its place below the copies, and as in Case."""

    victim: str
    reader: str
    argument: str
    find: Callable[[Path], Path]
    name: str

    def case(self, what: str, damage: Damage, *names: str) -> Case:
        """The file, damaged by a function of its path. Of a checkpoint the line may name another part."""
        names = names or ((self.name, "checkpoints/") if self.victim.endswith("_run") else (self.name,))
        what = f"{what}: {self.name} of {self.victim}"
        return Case(what, self.victim, self.reader, self.argument, lambda folder: damage(self.find(folder)), names)


def in_checkpoint(rng: Random, *names: str) -> Target:
    """One of the files of the last checkpoint of a run of either agent, for one of the commands that read it."""
    run, name = rng.choice(("decision_run", "ppo_run")), rng.choice(names or (TENSORS, STATE, MANIFEST))
    return Target(run, rng.choice(OF_RUNS), run, lambda folder: checkpoint_of(folder / run) / name, name)


def checkpoint(rng: Random, run: str | None = None) -> Target:
    """The folder of such a checkpoint."""
    run = run or rng.choice(("decision_run", "ppo_run"))
    return Target(run, rng.choice(OF_RUNS), run, lambda folder: checkpoint_of(folder / run), "checkpoints")


def saved_config(rng: Random) -> Target:
    run = rng.choice(("decision_run", "ppo_run"))
    return Target(run, rng.choice(OF_RUNS[:2]), run, lambda folder: folder / run / "config.yaml", "config.yaml")


def config(rng: Random) -> Target:
    name = rng.choice(("decision.yaml", "ppo.yaml"))
    return Target(name, "train.py --config", name, lambda folder: folder / name, name)


def recording(rng: Random, *names: str) -> Target:
    name = rng.choice(names or ("own.hdf5", "foreign.hdf5"))
    return Target(name, "train.py --dataset", name, lambda folder: folder / name, name)


def minari(rng: Random, *names: str) -> Target:
    name = rng.choice(names or ("main_data.hdf5", "metadata.json"))
    source = f"minari:{MINARI}"
    return Target(
        "minari_datasets_path", "train.py --dataset", source, lambda folder: folder / MINARI_DATA / name, MINARI
    )


def any_file(rng: Random) -> Target:
    """Any file of any of them; checkpoints most often, which have the most."""
    draw = rng.choice((in_checkpoint, in_checkpoint, in_checkpoint, saved_config, config, recording, minari))
    return draw(rng)
