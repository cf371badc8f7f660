"""YAML as a config needs it: small, shallow, without aliases; whatever else is refused before anything is built of it.

PyYAML builds what it is told to: a nesting of thousands ends in its recursion, and nine aliases of aliases stand for
10⁹ values, which only what reads them later finds out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MOST_BYTES, MOST_DEPTH = 1 << 20, 20
_load = get_loader("yaml")


def check_yaml(text: str) -> None:
    """Raise YAMLError, one line, for text that is not YAML of this kind. Nothing is built, and nothing recurses."""
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"{len(text):,} characters, where a config has a few hundred")
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
    """The value of a flag or a file, by jsonargparse's loader."""
    check_yaml(text)
    return _load(text)


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))


def read_mapping(path: Path) -> dict[str, Any]:
    """A config file's keys and values, as they are written.

    Raises:
        YAMLError: it holds anything else; one line without the path.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise yaml.YAMLError(f"{path.stat().st_size:,} bytes, where a config has a few hundred")
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise yaml.YAMLError("not UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is not
        raise yaml.YAMLError(f"not the YAML of a config: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict) or not content:
        found = "nothing" if content is None else f"one {type(content).__name__}"
        raise yaml.YAMLError(f"holds {found}, not keys and values")
    return content
