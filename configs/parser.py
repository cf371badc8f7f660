"""A parser of arguments and YAML files whose errors are one line that names the key and proposes the right one."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """Errors are one line on standard error and exit code 2.

    ``hint`` may say where else an option exists that this parser does not have.
    """

    hint: Callable[[str], str | None] = staticmethod(lambda word: None)

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """Parse the arguments, -1e3 among them, which argparse of Python < 3.14 takes for an option."""
        if args is None:
            args = sys.argv[1:]
        return super().parse_args([plain_number(word) for word in args], *more, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split()).replace("a typing.Literal", "one of ")
        flags = self.flags()
        if match := re.search(r"nrecognized arguments: (\S+)", line):
            word = match[1].split("=")[0]
            line = f"no option {word}{self.hint(word) or suggest(word, flags)}"
        elif match := re.search(r"Option '(\S+)' is not accepted|Group '(\S+)' does not accept option '(\S+)'", line):
            word, keys = match[1] or f"{match[2]}.{match[3]}", [flag[2:] for flag in flags]
            line = f"no key {word!r} in a config{self.hint(f'--{word}') or suggest(word, keys)}"
        line = line if len(line) <= 600 else f"{line[:600]} …"
        self.exit(2, f"{self.prog}: {line}; see --help\n")

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def plain_number(word: str) -> str:
    """A negative number with an exponent without it, -1000 for -1e3; any other word as it is."""
    if re.fullmatch(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}", word):
        return format(Decimal(word), "f")
    return word


def suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
