"""YAML as a config needs it: small, shallow and without aliases. Anything else is refused before it is built.

PyYAML builds whatever it is told to: a nesting of thousands of brackets ends in a RecursionError, and nine levels of
aliases stand for 10⁹ values, which the reader finds out too late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from unroll.errors import one_line

MOST_BYTES = 1 << 20
MOST_DEPTH = 20
_load = get_loader("yaml")


def check_yaml(text: str) -> None:
    """Raise YAMLError, one line, unless the text is YAML of this kind. Nothing is built, and nothing recurses."""
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"{len(text):,} characters, where a config has a few hundred")

    # Events come one after the other, however deep the text is.
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor}; write the value out")
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            raise yaml.YAMLError("a value with a NUL character")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise yaml.YAMLError(f"values nested more than {MOST_DEPTH} deep")


def load_yaml(text: str) -> Any:
    """Read the value of a flag or a file with jsonargparse's loader."""
    check_yaml(text)
    return _load(text)


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))


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
    return content
