"""Turn the arguments of ``unroll compare`` into the cells of its grid."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from unroll.agents import AGENTS, schemas
from unroll.comparison.grid import Cell
from unroll.comparison.pace import steps_in
from unroll.comparison.variants import SIZES, Variant, check_reference, make_variants
from unroll.configs import RunConfig, load_config
from unroll.errors import ComparisonError
from unroll.own import import_environment
from unroll.policies.backbones import import_own
from unroll.policies.backbones.matching import count_parameters, missed

MATCH = "--backbone.match_parameters"
TAKEN = {"compare", "figures", "workers"}  # folders of the report and of submitit among those of the experiments


def plan(options: Namespace, flags: list[str], arguments: list[str]) -> list[Cell]:
    """Make one cell for each config, row and seed: the first seed of every row comes first.

    A row is a backbone with its options and with values of the fields that are varied. The rows of a config have the
    number of parameters that the first one has with the config's width, or ``options.match_parameters``; with 0 each
    has the config's width, and so they have where a size is varied. With ``options.minutes`` a row learns for as many
    steps as it makes in that time.

    Args:
        flags: those of ``unroll train``, for all cells.
        arguments: the whole command line. Code of the user's own is imported only where it names it.

    Raises:
        ComparisonError, BackboneError: something cannot be compared, or the reference is no row.
            Nothing has been trained then.
    """
    variants = make_variants(options.backbones, options.vary)
    check_reference(options.reference, [variant.label for variant in variants])
    for name in dict.fromkeys(variant.backbone for variant in variants):
        if ":" in name:
            import_own(name)
    names = experiment_names(options.config)
    sizes = [parameters_of_all(options, path, flags, variants) for path in options.config]

    # A grid that is stopped early has compared all rows on its first seeds.
    cells = []
    for seed in range(options.seeds):
        for path, experiment, parameters in zip(options.config, names, sizes, strict=True):
            for variant in variants:
                words = train_arguments(options, path, flags, experiment, variant, seed, parameters)
                cells.append(make_cell(options, words, arguments, experiment, variant.label, seed))

    # Nothing is trained before every folder is known to be free or to hold the same run.
    for cell in cells:
        cell.check()
    return cells


def train_arguments(
    options: Namespace, path: str, flags: list[str], experiment: str, variant: Variant, seed: int, parameters: int
) -> list[str]:
    """Return the arguments of ``unroll train`` for one cell."""
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    words = ["--config", path, *flags, "--experiment", experiment, "--seed", str(seed)]
    words += ["--threads", str(threads), *variant.words]
    if parameters:
        words += [MATCH, str(parameters)]
    if options.video and seed == 0:
        words += ["--evaluation.video", "true"]
    return words


def missed_sizes(cells: list[Cell]) -> list[str]:
    """Say which rows have not quite the number of parameters that they were to have."""
    found = []
    for cell in cells:
        if cell.seed == 0 and MATCH in cell.arguments:
            backbone = cell.config.backbone
            wanted = int(cell.arguments[cell.arguments.index(MATCH) + 1])
            n = count_parameters(backbone.name, backbone.d_model, backbone.n_layers, backbone.options)
            if missed(wanted, n):
                found.append(f"{cell.experiment}, {cell.backbone}: {missed(wanted, n)}; no width is nearer")
    return found


def make_cell(
    options: Namespace, words: list[str], arguments: list[str], experiment: str, label: str, seed: int
) -> Cell:
    """Make the cell of a run with these arguments of ``unroll train``."""
    config = settled(words)
    if not config.evaluation.episodes:
        raise ComparisonError(f"{experiment}: with evaluation.episodes 0 a run has no score to compare")
    named = named_code(config, arguments)

    # The steps are part of the arguments: the run itself knows nothing of minutes.
    if options.minutes:
        file = options.output / "steps_per_second.json"
        steps = steps_in(options.minutes, config, f"{experiment}/{label}", file)
        words = [*words, "--steps", str(steps)]
        config = settled(words)
    folder = options.output / experiment / label / f"seed{seed}"
    return Cell(experiment, label, seed, folder, config, words, named)


def settled(arguments: list[str]) -> RunConfig:
    """Read the config of a run, and settle its backbone's sizes."""
    config = load_config(arguments, schemas(), "unroll compare")
    return AGENTS[config.agent].settled(config)


def named_code(config: RunConfig, arguments: list[str]) -> tuple[str, ...]:
    """Return the flags that name code of the user's own, and import it if this command line names it."""
    words: list[str] = []
    if ":" in config.backbone.name:
        words += ["--backbone.name", config.backbone.name]
    for flag, name in AGENTS[config.agent].imports(config).items():
        import_environment(arguments, flag, name)
        words += [flag, name]
    return tuple(words)


def parameters_of_all(options: Namespace, path: str, flags: list[str], variants: list[Variant]) -> int:
    """Return the number of parameters that every row of a config is given; 0: any.

    Raises:
        ComparisonError: all are to have the same number, and a size is varied.
    """
    varied = [name for name, _ in variants[0].fields if name in SIZES]
    if varied and options.match_parameters:
        raise ComparisonError(f"--vary {varied[0]}: --match_parameters says how large every backbone is")
    if varied:
        return 0
    if options.match_parameters is not None:
        return options.match_parameters
    config = load_config(["--config", path, *flags, *variants[0].words], schemas(), "unroll compare")
    first = config.backbone

    # The config itself may say how many; otherwise the first row says it for the others.
    if first.match_parameters or len({variant.architecture for variant in variants}) == 1:
        return first.match_parameters
    built = AGENTS[config.agent].fill(first.name, first.options)
    return count_parameters(first.name, first.d_model, first.n_layers, built)


def experiment_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each config file: its own, with its folder where two files have the same.

    Raises:
        ComparisonError: two names are equal nevertheless, or a name is that of another folder of the output.
    """
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join(Path(path).with_suffix("").parts[-2:]) for path in paths]
    if len(set(names)) < len(names):
        raise ComparisonError(f"--config {' '.join(paths)}: two files of the same name; rename one")
    taken = TAKEN.intersection(names)
    if taken:
        raise ComparisonError(f"--config: the output has a folder {taken.pop()!r} of its own; rename the file")
    return names
