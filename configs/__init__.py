"""Configuration: typed dataclasses ← YAML files ← flags. A file holds only what differs from the defaults and names
no code."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

set_parsing_settings(docstring_parse_attribute_docstrings=True)

STARTING = ("run_dir", "resume", "download")  # how a run was started, not what it computes
# what may change when a run goes on: the rest is what its weights depend on
RESUMABLE = (*STARTING, "dataset", "evaluation", "steps", "device", "threads", "log_every", "checkpoint_every", "keep")


@dataclasses.dataclass
class BackboneConfig:
    """The sequence model that is compared."""

    name: str = "mingru"
    """which one, or module:Class of your own; a wrong name lists those that exist"""
    d_model: PositiveInt = 128
    """width"""
    match_parameters: NonNegativeInt = 0
    """give the backbone this number of parameters within 2 % (its own, without embedding and head), through d_model
    and, where it has one, mlp_ratio. d_model is then ignored; config.yaml holds what came out, and 0 here. 0: off"""
    n_layers: PositiveInt = 3
    """number of residual blocks"""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """the backbone's own options, e.g. --backbone.options.expansion 2"""


@dataclasses.dataclass
class EvaluationConfig:
    """Playing episodes with the trained agent."""

    env: str | None = None
    """environment id; null: the dataset's own"""
    episodes: PositiveInt = 20
    """episodes for each target return"""
    targets: list[float] | None = None
    """returns to ask for; null: the median, 90 % quantile and maximum of the dataset's returns"""
    memory: Literal["carried", "window"] = "carried"
    """keep the state through an episode, or encode the last `context` steps anew for every action"""
    every: NonNegativeInt = 1000
    """updates between evaluations while training; 0: at the end alone"""
    seed: NonNegativeInt = 1_000_000
    """reset seed of the first episode; the others count up. The same for every backbone"""
    video: bool = False
    """also record a GIF of one episode, where rendering works"""


@dataclasses.dataclass
class TrainConfig:
    """Train a decision agent on recorded episodes, evaluate it, and leave everything in a run folder."""

    dataset: str = "embedded:hopper-v5-replay"
    """minari:ID, d4rl:ID, embedded:NAME or the path of an HDF5 file with D4RL's fields"""
    experiment: str | None = None
    """first part of the run's name runs/<experiment>/<backbone>/seed<k>; null: the dataset's name"""
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    """the sequence model"""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """playing episodes"""
    steps: PositiveInt = 3000
    """gradient updates"""
    context: PositiveInt = 20
    """environment steps of a training sequence, from 1 to whole episodes"""
    batch_size: PositiveInt = 64
    """sequences of a batch"""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """AdamW, or LAMB with a minimum trust, with which SHA-RNN was published"""
    learning_rate: PositiveFloat = 1e-3
    """the optimizer's learning rate after the warm-up"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """the learning rate after the warm-up: constant, or falling to 0"""
    warmup_steps: NonNegativeInt = 300
    """updates over which the learning rate rises from 0"""
    weight_decay: NonNegativeFloat = 1e-4
    """the optimizer's weight decay"""
    max_grad_norm: PositiveFloat = 0.25
    """gradients are clipped to this norm"""
    dropout: ClosedUnitInterval = 0.1
    """dropout of the embedding and of every residual branch"""
    tokens: Literal["fused", "interleaved"] = "fused"
    """one token per step, or one each for previous action, return-to-go and observation"""
    condition: Literal["return", "none"] = "return"
    """return: Decision Transformer; none: behaviour cloning"""
    previous_action: bool = True
    """show each step the action before it"""
    timestep_embedding: bool = False
    """add an embedding of the absolute timestep to the tokens"""
    top_fraction: ClosedUnitInterval = 1.0
    """learn from the best episodes alone, until they make up this share of the steps"""
    seed: NonNegativeInt = 0
    """of the weights, the batches and the dropout"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the matrix products while learning; weights, optimizer, recurrences and acting are float32 always"""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile the loss, once, for a minute or so: default needs a C++ compiler on a CPU; reduce-overhead also
    replays CUDA graphs on CUDA"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one"""
    threads: NonNegativeInt = 0
    """CPU threads; 0: as many as cores. Results are equal bit for bit only at equal numbers of threads"""
    log_every: PositiveInt = 100
    """updates between two points in TensorBoard and metrics.jsonl"""
    checkpoint_every: PositiveInt = 1000
    """updates between two checkpoints"""
    keep: PositiveInt = 2
    """how many checkpoints are kept"""
    run_dir: str | None = None
    """the run's folder; null: runs/<experiment>/<backbone>/seed<k>"""
    resume: bool = False
    """go on with the run in run_dir from its last checkpoint, under its saved config"""
    download: bool = False
    """fetch a d4rl: dataset that is not on the disk"""


class Parser(ArgumentParser):
    """Errors are one line on standard error and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split()).replace("a typing.Literal", "one of ")
        flags = [option for action in self._actions for option in action.option_strings]
        if match := re.search(r"nrecognized arguments: (\S+)", line):
            word = match[1].split("=")[0]
            line = f"no option {word}{_suggest(word, flags)}"
        elif match := re.search(r"Option '(\S+)' is not accepted", line):
            line = f"no key {match[1]!r} in a config{_suggest(match[1], [flag[2:] for flag in flags])}"
        self.exit(2, f"{self.prog}: {line}; see --help\n")


def train_parser(prog: str = "train.py") -> Parser:
    parser = Parser(prog=prog, description=TrainConfig.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--config", action="config", help="a YAML file; given twice, the second goes on top of the first"
    )
    parser.add_class_arguments(TrainConfig, None)
    return parser


def load_config(arguments: list[str], prog: str = "train.py") -> TrainConfig:
    """The config of ``train.py``'s arguments. A run that is resumed takes its saved config, with the flags on top, as
    long as they change nothing that its weights depend on."""
    parser = train_parser(prog)
    config = _build(parser, arguments)
    if config.run_dir == "":
        parser.error("run_dir is empty; it is the folder of a run")
    if any(part == ".." for part in Path(config.experiment or "").parts) or Path(config.experiment or "").is_absolute():
        parser.error(f"experiment {config.experiment!r} is part of a name below runs/; --run_dir takes any folder")
    check_targets(parser, config.evaluation.targets)
    if not config.resume:
        return config
    if config.run_dir is None:
        parser.error("--resume true needs --run_dir, the folder of the run that goes on")
    saved = Path(config.run_dir, "config.yaml")
    if not saved.is_file():
        parser.error(f"{config.run_dir}: no such run folder, or no config.yaml in it")
    before = _build(parser, ["--config", str(saved)])
    config = _build(parser, ["--config", str(saved), *arguments])
    given = dataclasses.asdict(config)
    for key, value in dataclasses.asdict(before).items():
        if key not in RESUMABLE and given[key] != value:
            parser.error(f"{key} of a run that goes on cannot be changed from {value} to {given[key]}")
    return config


def check_targets(parser: Parser, targets: list[float] | None) -> None:
    """An error unless there is something to ask for."""
    if targets is not None and not (targets and all(map(math.isfinite, targets))):
        parser.error(f"targets {targets}: one finite number or more is needed, or none for the default")


def _build(parser: Parser, arguments: list[str]) -> TrainConfig:
    parsed = parser.parse_args(arguments)
    for key in _nulls(TrainConfig, parsed):  # a file's null passes for any type
        parser.error(f"{key} is null; give it a value, or leave it out for its default")
    fields = vars(parser.instantiate(parsed))
    return TrainConfig(**{key: value for key, value in fields.items() if key != "config"})


def _nulls(cls: type, values: Any, prefix: str = "") -> Iterator[str]:
    """The keys that are None and have a type that None is not of."""
    for name, kind in get_type_hints(cls).items():
        value = getattr(values, name)
        if value is None and type(None) not in get_args(kind):
            yield prefix + name
        elif dataclasses.is_dataclass(kind):
            yield from _nulls(cast(type, kind), value, f"{prefix}{name}.")


def save_config(config: TrainConfig, path: Path) -> None:
    """Write what repeats the run: all fields but how it was started."""
    fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in STARTING}
    fields = json.loads(json.dumps(fields))  # jsonargparse's checked numbers become plain ones
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(yaml.safe_dump(fields, sort_keys=False))
    os.replace(temporary, path)


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
