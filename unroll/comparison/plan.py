"""From the arguments of compare.py to the cells of its grid."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from unroll.agents import AGENTS, schemas
from unroll.agents.algorithm import settle
from unroll.comparison.grid import Cell
from unroll.comparison.pace import steps_in
from unroll.configs import RunConfig, load_config
from unroll.errors import ComparisonError
from unroll.own import import_environment
from unroll.policies.backbones import import_own
from unroll.policies.backbones.matching import count_parameters


def plan(options: Namespace, flags: list[str], arguments: list[str]) -> list[Cell]:
    """One cell for each config, backbone and seed: the first seed of every backbone comes first.

    ``flags`` are train.py's, for all cells. With ``options.minutes`` a backbone learns for as many steps as it makes in
    that time. The backbones of a config have the number of parameters of the first one
    as the config has it, or ``options.match_parameters``; with 0 each has the config's width.

    Raises:
        ComparisonError, BackboneError: what cannot be compared, before anything is trained.
    """
    for name in options.backbones:
        if ":" in name:
            import_own(name)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    names = _experiments(options.config)
    cells = []
    for seed in range(options.seeds):
        for path, experiment in zip(options.config, names, strict=True):
            matched = _size(options, path, flags)
            for backbone in options.backbones:
                words = [
                    *("--config", path, *flags, "--experiment", experiment, "--seed", str(seed)),
                    *("--threads", str(threads), "--backbone.name", backbone),
                    *(("--backbone.match_parameters", str(matched)) if matched else ()),
                    *(("--evaluation.video", "true") if options.video and seed == 0 else ()),
                ]
                label = backbone.rpartition(":")[2]
                config = _settled(words)
                if not config.evaluation.episodes:
                    raise ComparisonError(f"{experiment}: with evaluation.episodes 0 a run has no score to compare")
                named = named_code(config, arguments)
                if options.minutes:
                    file = options.output / "steps_per_second.json"
                    steps = steps_in(options.minutes, config, f"{experiment}/{label}", file)
                    words += ["--steps", str(steps)]
                    config = _settled(words)
                folder = options.output / experiment / label / f"seed{seed}"
                cells.append(Cell(experiment, label, seed, folder, config, words, named))
    for cell in cells:
        cell.check()
    return cells


def _settled(arguments: list[str]) -> RunConfig:
    config = load_config(arguments, schemas(), "unroll compare")
    return dataclasses.replace(config, backbone=settle(config.backbone))


def named_code(config: RunConfig, arguments: list[str]) -> tuple[str, ...]:
    """The flags that name code of the user's own, which is imported if this command line names it."""
    words: list[str] = []
    if ":" in config.backbone.name:
        words += ["--backbone.name", config.backbone.name]
    for flag, name in AGENTS[config.agent].imports(config).items():
        import_environment(arguments, flag, name)
        words += [flag, name]
    return tuple(words)


def _size(options: Namespace, path: str, flags: list[str]) -> int:
    """The number of parameters that every backbone of a config is given; 0: any."""
    if options.match_parameters is not None:
        return options.match_parameters
    config = load_config(["--config", path, *flags], schemas(), "unroll compare")
    if config.backbone.match_parameters or len(options.backbones) == 1:
        return config.backbone.match_parameters
    first = config.backbone
    return count_parameters(options.backbones[0], first.d_model, first.n_layers, first.options)


def _experiments(paths: Sequence[str]) -> list[str]:
    """A name for each config file."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join(Path(path).with_suffix("").parts[-2:]) for path in paths]
    if len(set(names)) < len(names):
        raise ComparisonError(f"--config {' '.join(paths)}: two files of the same name; rename one")
    if taken := {"compare", "figures", "workers"}.intersection(names):
        raise ComparisonError(f"--config: the output has a folder {taken.pop()!r} of its own; rename the file")
    return names
