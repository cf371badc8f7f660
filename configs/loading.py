"""Read a config from arguments and files, and write it to a file.

Nothing here knows which agents there are. Functions that need to know take ``schemas``: the config class of every agent
by the agent's name, as ``unroll.agents.schemas()`` gives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import yaml

from unroll.configs.fields import RunConfig
from unroll.configs.parser import Parser
from unroll.configs.strict_yaml import as_text, dump_yaml, read_mapping
from unroll.errors import BackboneError, UserError
from unroll.files import write_whole

Schemas = Mapping[str, type[RunConfig]]

FOLDER = Path(__file__).parent  # of the configs that come with the package
CHECKSUM = "# of a run, SHA-256 of what follows: "  # the beginning of the first line of a run's config


def train_parser(schemas: Schemas, agent: str, prog: str = "unroll train") -> Parser:
    """Make the parser of one agent's config."""
    others = [name for name in schemas if name != agent]
    about = schemas[agent].__doc__ or ""
    about += f" These are the fields of --agent {agent}."
    if others:
        about += f" Other agents have other fields: {', '.join(f'--agent {other} --help' for other in others)}."
    parser = Parser(prog=prog, description=about, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file, or the name of one that comes with the package (ppo/tmaze); given twice, the second goes "
        "on top of the first",
    )
    parser.add_class_arguments(schemas[agent], None)

    def hint(word: str) -> str | None:
        """Say which agent has an option that this one does not have."""
        for other in others:
            if word in train_parser(schemas, other, prog).flags():
                return f" for agent {agent}: it is one of agent {other}"
        return None

    parser.hint = hint
    return parser


def load_config(
    arguments: list[str],
    schemas: Schemas,
    prog: str = "unroll train",
    settled: Callable[[RunConfig], RunConfig] = lambda config: config,
) -> RunConfig:
    """Read the config that arguments and the files that they name describe.

    A run that is resumed has its saved config. Flags go on top of it, unless they change what its weights depend on.
    Any mistake ends the program with one line.

    Args:
        settled: returns a config as a run saves it, so that the flags that began a run change nothing.
    """
    arguments = configs_first(find_configs(arguments))
    said = _peek(arguments, prog)

    # The agent chooses the parser. A run that goes on has the agent that its own config names.
    saved = Path(os.path.expanduser(str(said.get("run_dir"))), "config.yaml")
    before = None
    if said.get("resume") is True and saved.is_file():
        before = _peek(["--config", str(saved)], prog).get("agent", next(iter(schemas)))

    agent = said.get("agent", before or next(iter(schemas)))
    if not isinstance(agent, str) or agent not in schemas:
        Parser(prog=prog).error(f"agent {agent!r}: expected one of {', '.join(schemas)}")
    parser = train_parser(schemas, agent, prog)
    if before not in (None, agent):
        parser.error(f"agent of a run that goes on cannot be changed from {before} to {agent}")

    # Both become parts of paths.
    config = _build(parser, schemas[agent], arguments)
    if config.run_dir == "":
        parser.error("run_dir is empty; it is the folder of a run")
    experiment = Path(config.experiment or "")
    if ".." in experiment.parts or experiment.is_absolute():
        parser.error(f"experiment {config.experiment!r} is part of a name below runs/; --run_dir takes any folder")
    if config.resume:
        return _resumed(parser, config, arguments, settled)
    return config


def find_configs(arguments: list[str]) -> list[str]:
    """Replace the names of configs that come with the package by their paths.

    ``ppo/tmaze``, ``ppo/tmaze.yaml`` and ``configs/ppo/tmaze.yaml`` are one name. A file of the user's goes before it.
    """
    found = []
    for i, word in enumerate(arguments):
        if word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        elif i and arguments[i - 1] == "--config":
            word = find_config(word)
        found.append(word)
    return found


def configs_first(arguments: list[str]) -> list[str]:
    """Put the files before the flags: the parser goes by the order of words, and a flag replaces what a file says."""
    files: list[str] = []
    flags: list[str] = []
    target = flags
    for word in arguments:
        # A value follows its flag.
        if word.startswith("--"):
            target = files if word.partition("=")[0] == "--config" else flags
        target.append(word)
    return [*files, *flags]


def find_config(name: str) -> str:
    """Return the path of a config file: ``name`` itself if it is a file, else the one that comes with the package."""
    name = os.path.expanduser(name)
    if Path(name).exists() or Path(name).is_absolute():
        return name

    # A name may not lead out of the folder.
    relative = name.removeprefix("configs/").removesuffix(".yaml")
    bundled = FOLDER / f"{relative}.yaml"
    if bundled.is_file() and FOLDER.resolve() in bundled.resolve().parents:
        return str(bundled)
    return name


def config_names() -> list[str]:
    """List the configs that come with the package."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def _resumed(
    parser: Parser, config: RunConfig, arguments: list[str], settled: Callable[[RunConfig], RunConfig]
) -> RunConfig:
    """Return the saved config of the run that goes on, with the arguments on top."""
    if config.run_dir is None:
        parser.error("--resume true needs --run_dir, the folder of the run that goes on")
    saved = Path(config.run_dir, "config.yaml")
    if not saved.is_file():
        parser.error(f"{config.run_dir}: no such run folder, or no config.yaml in it")
    check_saved(saved, parser)

    # What the flags change is seen by building both.
    before = _build(parser, type(config), ["--config", str(saved)])
    now = _build(parser, type(config), ["--config", str(saved), *arguments])
    if before.name_what_changed():
        now.name_what_changed()
    if now.backbone != before.backbone:
        with contextlib.suppress(BackboneError):  # what is not known is another one
            now = settled(now)
    given = dataclasses.asdict(now)
    for key, value in dataclasses.asdict(before).items():
        if key not in config.may_change and given[key] != value:
            parser.error(f"{key} of a run that goes on cannot be changed from {value} to {given[key]}")
    return now


def read_config(fields: dict[str, Any], schemas: Schemas, source: str) -> RunConfig:
    """Make a config of the fields that ``plain_config`` gave of a run, as strictly as of a file.

    ``source`` begins the line of an error.
    """
    agent = str(fields.get("agent", next(iter(schemas))))
    if agent not in schemas:
        Parser(prog=source).error(f"agent {agent!r}: expected one of {', '.join(schemas)}")
    _check_groups(fields, Parser(prog=source))
    config = _build(train_parser(schemas, agent, source), schemas[agent], fields)
    config.name_what_changed()
    return config


def plain_config(config: RunConfig) -> dict[str, Any]:
    """Return the fields that repeat the run, for YAML or JSON, those that all agents have last.

    Fields that say how the run was started are left out.
    """
    fields = sorted(dataclasses.fields(config), key=lambda field: bool(field.kw_only))
    values = dataclasses.asdict(config)
    return {field.name: values[field.name] for field in fields if field.name not in config.starting}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"a": {"b": 1}} into {"a.b": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


def save_config(config: RunConfig, path: Path) -> None:
    """Write the config of a run, with a checksum that tells whether the file is whole."""
    text = dump_yaml(plain_config(config))
    write_whole(path, f"{CHECKSUM}{_sha256(text.encode())}\n{text}")


def load_saved(path: Path, schemas: Schemas, prog: str) -> RunConfig:
    """Read the config that ``save_config`` wrote. A file that was cut or changed since ends the program."""
    check_saved(path, Parser(prog=prog))
    config = load_config(["--config", str(path)], schemas, prog)
    config.name_what_changed()
    return config


def check_saved(path: Path, parser: Parser) -> None:
    """End with the parser's error unless the file is as ``save_config`` wrote it."""
    # The first line has the checksum of all the others.
    first, _, rest = path.read_bytes().partition(b"\n")
    if first != f"{CHECKSUM}{_sha256(rest)}".encode():
        parser.error(f"{path}: cut, damaged or edited since the run wrote it; flags change what may change")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _build(parser: Parser, schema: type[RunConfig], source: list[str] | dict[str, Any]) -> RunConfig:
    """Make a config of arguments, or of plain fields, after every check."""
    if isinstance(source, list):
        rest = [word for word in source if not word.startswith("--print_config")]
        if rest != source:  # what a run would refuse is refused before it is printed
            _build(parser, schema, rest)
        parsed = parser.parse_args(source)
    else:
        parsed = parser.parse_object(as_text(source))
    for fault in _null_faults(schema, parsed):
        parser.error(fault)

    # The parser's own --config is no field of a config.
    fields = vars(parser.instantiate(parsed))
    fields.pop("config", None)
    try:
        config = schema(**fields)
    except UserError as error:  # an infinity, which the parser lets pass
        parser.error(str(error))
    _make_plain(config)
    if config.run_dir:
        config.run_dir = os.path.expanduser(config.run_dir)  # no shell does it in a file, or after an =
    for fault in config.faults():
        parser.error(fault)
    return config


def _make_plain(config: Any) -> None:
    """Turn what was read, whose numbers and texts are subclasses of int, float and str, into Python's own.

    With a subclass of float NumPy computes in float64, where a plain float takes the type of the array. A default that
    nobody set would then give other bits than the same value from a flag.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _make_plain(value)
        else:
            setattr(config, field.name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    for kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value


def _null_faults(cls: type, values: Any, prefix: str = "") -> Iterator[str]:
    """Yield a line for each null that jsonargparse lets pass in a file for a field of any type."""
    # A field that is itself a config is looked into.
    for field in dataclasses.fields(cls):
        name = field.name
        kind = get_type_hints(cls)[name]
        value = getattr(values, name)
        if value is None and type(None) not in get_args(kind):
            yield f"{prefix}{name} is null; give it a value, or leave it out for its default"
        elif dataclasses.is_dataclass(kind):
            yield from _null_faults(cast(type, kind), value, f"{prefix}{name}.")


def _check_groups(fields: dict[str, Any], parser: Parser) -> None:
    """Refuse a plain value where a group of keys belongs.

    jsonargparse would read the file that a text names, and put the keys of a flag into the value.
    """
    for key in ("backbone", "evaluation", "pretrain"):
        value = fields.get(key, {})
        if not isinstance(value, dict):
            said = "null" if value is None else repr(value)
            parser.error(f"{key} is {said}, but it has keys of its own; left out, they have their defaults")


def _peek(arguments: list[str], prog: str) -> dict[str, Any]:
    """Read what files and flags say of the keys that choose the parser.

    The parser checks their values later. A file that is no config is an error at once.
    """
    said: dict[str, Any] = {}
    agents: dict[str, object] = {}  # by the file that names one
    words = iter(arguments)
    for word in words:
        # A value stands behind the flag's equals sign, or in the next word.
        flag, equals, value = word.partition("=")
        key = flag.removeprefix("--")
        if not flag.startswith("--") or key not in ("config", "agent", "resume", "run_dir"):
            continue
        if not equals:
            value = next(words, "")
        if key == "config":
            found = _peek_file(value, prog)
            said |= found
            if "agent" in found:
                agents[value] = found["agent"]
        elif key == "resume":
            said[key] = value.lower() in ("true", "yes")
        else:
            said[key] = value

    # The parser of one agent would only say that it does not know the other.
    for name, agent in agents.items():
        if agent != said["agent"]:
            Parser(prog=prog).error(f"{name} is a config for agent {agent}, and not for agent {said['agent']}")
    return said


def _peek_file(name: str, prog: str) -> dict[str, Any]:
    """Read the keys that choose the parser from a config file."""
    # The parser tells of a file that is missing; a name that is nearly that of a config can be mended.
    if not Path(name).is_file():
        near = difflib.get_close_matches(name, config_names(), n=1)
        if near:
            Parser(prog=prog).error(f"{name}: no such config file (did you mean {near[0]}?)")
        return {}
    try:
        content = read_mapping(Path(name))
    except (OSError, yaml.YAMLError) as error:
        Parser(prog=prog).error(f"{name}: {error}")
    if "config" in content:
        Parser(prog=f"{prog}: {name}").error("no key 'config' in a config; --config A --config B puts B on top of A")
    _check_groups(content, Parser(prog=f"{prog}: {name}"))
    return {key: content[key] for key in ("agent", "resume", "run_dir") if key in content}
