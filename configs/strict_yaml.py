"""YAML as a config needs it: small, shallow, without aliases, and with one meaning. Anything else is refused.

PyYAML builds whatever it is told to: a nesting of thousands of brackets ends in a RecursionError, and nine levels of
aliases stand for 10⁹ values, which the reader finds out too late. Of a key that is there twice it takes the last one
without a word. It reads YAML 1.1, in which 010 is 8 and 1:30 is 90, where YAML 1.2 reads 10 and text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from jsonargparse.typing import register_type

from unroll.errors import one_line

MOST_BYTES = 1 << 20
MOST_DEPTH = 20

# Plain text that means one thing in YAML 1.1 and another in 1.2, and what to write instead.
AMBIGUOUS = {
    re.compile(r"[-+]?0[0-9][0-9_]*"): "a number begins with no 0",
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"): "write the number out",
    re.compile(r"None"): "null stands for nothing",
    re.compile(r"[-+]?0[ob][0-7_]+"): "write the number out",
}
# The same for values of any type. Elsewhere the type of the field decides.
FREE = ("env_kwargs", "options")
AMBIGUOUS_IF_FREE = {
    re.compile(r"yes|no|on|off", re.IGNORECASE): "true or false",
    re.compile(r"[-+]?[0-9]+(_[0-9]+)+"): "write the number without _",
}
_load = get_loader("yaml")


def check_yaml(text: str, free: bool = False) -> None:
    """Raise YAMLError, one line, unless the text is YAML of this kind. Nothing is built, and nothing recurses.

    ``free``: all values in it may be of any type.
    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"{len(text):,} characters, where a config has a few hundred")

    # Events come one after the other, however deep the text is. For each collection that is open: what has been seen
    # of it. For a mapping these are its keys with their lines, and whether a key comes next; for a list it is None.
    open_collections: list[_Mapping | None] = []
    free_from = 0 if free else MOST_DEPTH + 1  # how many collections are open around values of any type
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor}; write the value out")
        if isinstance(event, yaml.ScalarEvent):
            _check_scalar(event, len(open_collections) >= free_from)

        if isinstance(event, yaml.CollectionEndEvent):
            open_collections.pop()
            if len(open_collections) < free_from and not free:
                free_from = MOST_DEPTH + 1
            continue
        mapping = open_collections[-1] if open_collections else None
        if mapping is not None and isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            mapping.take(event)
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append(_Mapping() if isinstance(event, yaml.MappingStartEvent) else None)
            if mapping is not None and mapping.last_key.rpartition(".")[2] in FREE:
                free_from = min(free_from, len(open_collections))
            if len(open_collections) > MOST_DEPTH:
                raise yaml.YAMLError(f"values nested more than {MOST_DEPTH} deep")


class _Mapping:
    """A mapping while it is read: keys and values come by turns."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.at_key = True
        self.last_key = ""

    def take(self, event: yaml.Event) -> None:
        """Take the next key or value. Raises YAMLError for a key that was there before."""
        if self.at_key and isinstance(event, yaml.ScalarEvent):
            line = event.start_mark.line + 1
            if event.value in self.lines:
                before = self.lines[event.value]
                where = f"lines {before} and {line}" if before != line else f"line {line}"
                raise yaml.YAMLError(f"{event.value} is there twice, in {where}")
            self.lines[event.value] = line
            self.last_key = event.value
        self.at_key = not self.at_key


def _check_scalar(event: yaml.ScalarEvent, free: bool) -> None:
    """Raise YAMLError for a value that no config has, or that has two meanings."""
    if "\0" in event.value:
        raise yaml.YAMLError("a value with a NUL character")
    if event.style is None or event.style == "":
        patterns = AMBIGUOUS | AMBIGUOUS_IF_FREE if free else AMBIGUOUS
        for pattern, instead in patterns.items():
            if pattern.fullmatch(event.value):
                where = f"{event.value} in line {event.start_mark.line + 1}"
                raise yaml.YAMLError(f"{where} can be read in two ways; {instead}, and text is in quotes")


class Text(str):
    """Text that was in quotes. jsonargparse reads other text again where any type is allowed: '010' would become 10."""


register_type(Text, serializer=Text)  # --print_config writes it with the dumper below


def load_yaml(text: str) -> Any:
    """Read the value of a flag or a file with jsonargparse's loader. What is in quotes stays text."""
    check_yaml(text)
    content = _load(text)
    if isinstance(content, dict | list) and ("'" in text or '"' in text):
        content = _keep_quotes(content, yaml.compose(text, yaml.SafeLoader))
    return content


def _keep_quotes(value: Any, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode) and isinstance(value, str) and node.style in ("'", '"'):
        return Text(value)
    if isinstance(node, yaml.SequenceNode) and isinstance(value, list):
        return [_keep_quotes(part, inner) for part, inner in zip(value, node.value, strict=True)]
    if isinstance(node, yaml.MappingNode) and isinstance(value, dict):
        inner = {key.value: child for key, child in node.value if isinstance(key, yaml.ScalarNode)}
        return {key: _keep_quotes(part, inner[key]) if key in inner else part for key, part in value.items()}
    return value


def as_text(value: Any) -> Any:
    """Mark all text in a tree as text, because it has been read already."""
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, list):
        return [as_text(part) for part in value]
    if isinstance(value, dict):
        return {key: as_text(part) for key, part in value.items()}
    return value


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes where ``check_yaml`` would not read it without."""

    def represent_text(self, text: str) -> yaml.Node:
        ambiguous = any(pattern.fullmatch(text) for pattern in AMBIGUOUS | AMBIGUOUS_IF_FREE)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if ambiguous else None)


for kind in (str, Text):
    _Dumper.add_representer(kind, _Dumper.represent_text)


def dump_yaml(content: dict[str, Any]) -> str:
    """Write what ``read_mapping`` reads, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


set_dumper("yaml", dump_yaml)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a config file's keys and values, as they are written.

    Raises:
        YAMLError: it holds anything else. The message is one line without the path.
        OSError: it cannot be read.
    """
    # The size first: a file may be larger than the RAM.
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise yaml.YAMLError(f"{size:,} bytes, where a config has a few hundred")
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise yaml.YAMLError("not UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that does not exist
        raise yaml.YAMLError(f"not the YAML of a config: {one_line(error, 200)}") from None
    if content is None:
        raise yaml.YAMLError("holds nothing, not keys and values")
    if not isinstance(content, dict) or not content:
        raise yaml.YAMLError(f"holds one {type(content).__name__}, not keys and values")
    _check_dotted(content)
    _check_free(content)
    return content


def _check_dotted(content: dict[str, Any]) -> None:
    """Raise YAMLError where ``a.b`` and ``a: {b: …}`` are both there."""
    for key in content:
        group, *rest = str(key).split(".")
        inner = content.get(group) if rest else None
        for name in rest:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if inner is not None:
            raise yaml.YAMLError(f"{key} is there twice, by this name and within {group}")


def _check_free(content: dict[str, Any], outer: str = "") -> None:
    """Raise YAMLError for ``backbone.options.conv: 7``: jsonargparse makes no mapping of any names out of dots."""
    for key, value in content.items():
        name = f"{outer}{key}"
        *groups, last = name.split(".")
        for depth, group in enumerate(groups, 1):
            if group in FREE:
                whole = ".".join(groups[:depth])
                inner = [*groups, last][depth]
                raise yaml.YAMLError(f"{name}: dots do not lead into {whole} in a file; write {whole}: {{{inner}: …}}")
        if isinstance(value, dict) and last not in FREE:
            _check_free(value, f"{name}.")
