"""From arguments and files to a config, and back to a file."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import yaml
from jsonargparse import Namespace

from unroll.agents.decision.config import TrainConfig
from unroll.agents.ppo.config import PPOConfig
from unroll.configs.parser import Parser
from unroll.configs.strict_yaml import read_mapping

Config = TrainConfig | PPOConfig
AGENTS: dict[str, type[Config]] = {"decision": TrainConfig, "ppo": PPOConfig}

GROUPS = {"backbone", "evaluation"}  # the fields that have fields
CHECKSUM = "# of a run, SHA-256 of what follows: "
STARTING = ("run_dir", "resume", "download")  # how a run was started, not what it computes
# what may change when a run goes on: the rest is what its weights depend on
RESUMABLE = (
    *STARTING,
    "dataset",
    "evaluation",
    "steps",
    "device",
    "threads",
    "log_every",
    "checkpoint_every",
    "keep",
    "track",
)


def train_parser(prog: str = "train.py", agent: str = "decision") -> Parser:
    """The parser of one agent's config."""
    (other,) = AGENTS.keys() - {agent}
    about = AGENTS[agent].__doc__ or ""
    if agent == "decision":
        about += " These are the fields of the decision agent; train.py --agent ppo --help explains those of PPO."
    parser = Parser(prog=prog, description=about, allow_abbrev=False)
    parser.add_argument(
        "--config", action="config", help="a YAML file; given twice, the second goes on top of the first"
    )
    parser.add_class_arguments(AGENTS[agent], None)

    def hint(word: str) -> str | None:
        return f" for agent {agent}: it is one of agent {other}" if word in train_parser(prog, other).flags() else None

    parser.hint = hint
    return parser


def load_config(arguments: list[str], prog: str = "train.py") -> Config:
    """The config of ``train.py``'s arguments. A run that is resumed takes its saved config, with the flags on top, as
    long as they change nothing that its weights depend on."""
    said = _peek(arguments, prog)
    saved = Path(str(said.get("run_dir")), "config.yaml") if said.get("resume") is True else None
    before = _peek(["--config", str(saved)], prog).get("agent", "decision") if saved and saved.is_file() else None
    agent = said.get("agent", before or "decision")
    if not isinstance(agent, str) or agent not in AGENTS:
        Parser(prog=prog).error(f"agent {agent!r}: expected one of {', '.join(AGENTS)}")
    parser = train_parser(prog, agent)
    if before not in (None, agent):
        parser.error(f"agent of a run that goes on cannot be changed from {before} to {agent}")
    config = _build(parser, agent, arguments)
    if config.run_dir == "":
        parser.error("run_dir is empty; it is the folder of a run")
    if any(part == ".." for part in Path(config.experiment or "").parts) or Path(config.experiment or "").is_absolute():
        parser.error(f"experiment {config.experiment!r} is part of a name below runs/; --run_dir takes any folder")
    if isinstance(config, TrainConfig):
        check_targets(parser, config.evaluation.targets)
    return _resumed(parser, agent, config, arguments) if config.resume else config


def _resumed(parser: Parser, agent: str, config: Config, arguments: list[str]) -> Config:
    """The saved config of the run that goes on, with the arguments on top."""
    if config.run_dir is None:
        parser.error("--resume true needs --run_dir, the folder of the run that goes on")
    saved = Path(config.run_dir, "config.yaml")
    if not saved.is_file():
        parser.error(f"{config.run_dir}: no such run folder, or no config.yaml in it")
    _check_saved(saved, parser)
    before = _build(parser, agent, ["--config", str(saved)])
    config = _build(parser, agent, ["--config", str(saved), *arguments])
    given = dataclasses.asdict(config)
    for key, value in dataclasses.asdict(before).items():
        if key not in RESUMABLE and given[key] != value:
            parser.error(f"{key} of a run that goes on cannot be changed from {value} to {given[key]}")
    return config


def read_config(fields: dict[str, Any], source: str) -> Config:
    """The config that ``plain_config`` made plain, checked as strictly as a file; ``source`` begins the line of an
    error."""
    agent = str(fields.get("agent", "decision"))
    if agent not in AGENTS:
        Parser(prog=source).error(f"agent {agent!r}: expected one of {', '.join(AGENTS)}")
    _check_groups(fields, Parser(prog=source))
    return _build(train_parser(source, agent), agent, fields)


def check_targets(parser: Parser, targets: list[float] | None) -> None:
    """An error unless there is something to ask for."""
    if targets is not None and not (targets and all(map(math.isfinite, targets))):
        parser.error(f"targets {targets}: one finite number or more is needed, or none for the default")


def plain_config(config: Config) -> dict[str, Any]:
    """What repeats the run, for YAML or JSON: all fields but how it was started, those of every agent last."""
    names = [field.name for field in sorted(dataclasses.fields(config), key=lambda field: bool(field.kw_only))]
    fields = dataclasses.asdict(config)
    return {name: fields[name] for name in names if name not in STARTING}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return pairs


def save_config(config: Config, path: Path) -> None:
    """The config of a run, as a file that says by itself whether it is whole."""
    text = yaml.safe_dump(plain_config(config), sort_keys=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{CHECKSUM}{_sha256(text.encode())}\n{text}")
    os.replace(temporary, path)


def load_saved(path: Path, prog: str) -> Config:
    """The config that ``save_config`` wrote; an error where it was cut or changed since."""
    _check_saved(path, Parser(prog=prog))
    return load_config(["--config", str(path)], prog=prog)


def _check_saved(path: Path, parser: Parser) -> None:
    first, _, rest = path.read_bytes().partition(b"\n")
    if first != f"{CHECKSUM}{_sha256(rest)}".encode():
        parser.error(f"{path}: cut, damaged or edited since the run wrote it; flags change what may change")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _build(parser: Parser, agent: str, source: list[str] | dict[str, Any]) -> Config:
    parsed = parser.parse_args(source) if isinstance(source, list) else parser.parse_object(source)
    for fault in _faults(AGENTS[agent], parsed):
        parser.error(fault)
    fields = vars(parser.instantiate(parsed))
    config = AGENTS[agent](**{key: value for key, value in fields.items() if key != "config"})
    _make_plain(config)
    return config


def _make_plain(config: Any) -> None:
    """jsonargparse's checked numbers become Python's own: NumPy computes with a subclass of float in float64, where a
    float, such as a default that nobody set, takes the type of the array."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _make_plain(value)
        else:
            setattr(config, field.name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    for kind in (int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value


def _faults(cls: type, values: Any, prefix: str = "") -> Iterator[str]:
    """What jsonargparse lets pass in a file: a null for any type, a plain value for a field with keys of its own."""
    for name, kind in get_type_hints(cls).items():
        value = getattr(values, name)
        if value is None and type(None) not in get_args(kind):
            yield f"{prefix}{name} is null; give it a value, or leave it out for its default"
        elif dataclasses.is_dataclass(kind):
            if isinstance(value, Namespace):
                yield from _faults(cast(type, kind), value, f"{prefix}{name}.")
            else:
                keys = ", ".join(field.name for field in dataclasses.fields(kind))
                yield f"{prefix}{name} is {value!r}; it has keys of its own: {keys}"


def _check_groups(fields: dict[str, Any], parser: Parser) -> None:
    for key in GROUPS & fields.keys():
        if isinstance(fields[key], str):  # jsonargparse would read the file of that name
            parser.error(f"{key} is {fields[key]!r}, but it has keys of its own")


def _peek(arguments: list[str], prog: str) -> dict[str, Any]:
    """What files and flags say of the keys that choose the parser, which later finds whatever is wrong with their
    values; a file that is no config is an error at once."""
    said: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        key = flag.removeprefix("--")
        if not flag.startswith("--") or key not in ("config", "agent", "resume", "run_dir"):
            continue
        value = value if equals else next(words, "")
        if key in ("agent", "run_dir"):
            said[key] = value
        elif key == "resume":
            said[key] = value.lower() in ("true", "yes")
        elif Path(value).is_file():
            try:
                content = read_mapping(Path(value))
            except (OSError, yaml.YAMLError) as error:
                Parser(prog=prog).error(f"{value}: {error}")
            _check_groups(content, Parser(prog=f"{prog}: {value}"))
            said |= {k: content[k] for k in ("agent", "resume", "run_dir") if k in content}
    return said
