"""A parser of arguments and YAML files whose errors are one line that names the key and proposes the right one."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """Errors are one line on standard error and exit code 2.

    ``hint`` may say where else an option exists that this parser does not have.
    """

    hint: Callable[[str], str | None] = staticmethod(lambda word: None)

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

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        with self._refusing_overflow():
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Any:
        with self._refusing_overflow():
            return super().parse_object(*args, **kwargs)

    @contextlib.contextmanager
    def _refusing_overflow(self) -> Iterator[None]:
        """Make an error of a whole number that is larger than any float, which jsonargparse lets pass as it is."""
        try:
            yield
        except OverflowError as error:
            self.error(f"a number is too large ({error})")

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
