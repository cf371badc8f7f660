"""A parser of arguments and YAML files whose errors are one line that names the key and proposes the right one."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from unroll.configs.strict_yaml import FREE, check_yaml
from unroll.errors import one_line

set_parsing_settings(docstring_parse_attribute_docstrings=True)


LONGEST = 600  # characters of an error
UNKNOWN_FLAG = re.compile(r"nrecognized arguments: (\S+)")
UNKNOWN_KEY = re.compile(r"Option '(\S+)' is not accepted")
OPTIONAL = re.compile(  # a value that may be null
    r"Does not validate against .*? Errors: - (?:Not of type \w+: )?(.*?) - Expected a NoneType .*Given value: (.*)"
)
UNION = re.compile(r"Does not validate against .*? Subtypes: \[(.*)\] Errors: .* Given value: (.*)")
UNKNOWN_INNER_KEY = re.compile(r"Group '(\S+)' does not accept option '(\S+)'")


class Parser(ArgumentParser):
    """A parser whose errors are one line on standard error and exit code 2.

    ``hint`` may say where else an option exists that this parser does not have.
    """

    hint: Callable[[str], str | None] = staticmethod(lambda word: None)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split()).replace("a typing.Literal", "one of ")
        line = re.sub(r"<class '([\w.]+)'>", r"\1", line)
        line = self._unknown_option(line) or OPTIONAL.sub(r"\2: \1, and is not null", line)
        line = UNION.sub(r"\2: Expected one of \1", line)
        if len(line) > LONGEST:
            line = f"{line[:LONGEST]} …"
        self.exit(2, f"{self.prog}: {line}; see --help\n")

    def _unknown_option(self, line: str) -> str | None:
        """Say which option or key does not exist, and which one may be meant; None if the error is another one."""
        # A flag of the command line.
        flags = self.flags()
        flag = UNKNOWN_FLAG.search(line)
        if flag:
            word = flag[1].split("=")[0]
            return f"no option {word}{self.hint(word) or suggest(word, flags)}"

        # A key of a file, at the top or within a group.
        key = UNKNOWN_KEY.search(line)
        inner_key = UNKNOWN_INNER_KEY.search(line)
        if key:
            word = key[1]
        elif inner_key:
            word = f"{inner_key[1]}.{inner_key[2]}"
        else:
            return None
        keys = [flag.removeprefix("--") for flag in flags]
        return f"no key {word!r} in a config{self.hint(f'--{word}') or suggest(word, keys)}"

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """Parse the arguments, -1e3 among them, which argparse of Python < 3.14 takes for an option."""
        if args is None:
            args = sys.argv[1:]
        self._check_values(args)
        words = self._join_lists([plain_number(word) for word in args])
        # What is printed is the config of all flags, also of those after --print_config.
        printing = [word for word in words if word.startswith("--print_config")]
        words = [word for word in words if word not in printing] + printing
        with self._refusing_overflow():
            return super().parse_args(words, *more, **kwargs)

    def _join_lists(self, words: list[str]) -> list[str]:
        """Write the values of a flag that takes a list as one: ``--targets 5 2`` as ``--targets [5, 2]``.

        Where one text may stand for itself, it stays as it is, and several are put in quotes: a path may hold a comma.
        """
        lists: set[str] = set()
        texts: set[str] = set()
        for action in self._actions:
            kind = getattr(action, "_typehint", None)
            if list in (get_origin(part) for part in (kind, *get_args(kind))):
                chosen = texts if str in get_args(kind) else lists
                chosen.update(action.option_strings)

        words = _quote_several(words, texts)
        joined: list[str] = []
        flag = ""
        for word in words:
            if word.startswith("--"):
                flag = word
            elif flag in lists and word != "null" and not word.startswith("["):
                # The first value begins a list, and the others are put at its end.
                word = f"[{word}]" if joined[-1] == flag else f"{joined.pop()[:-1]}, {word}]"
            joined.append(word)
        return joined

    def _check_values(self, arguments: list[str]) -> None:
        """Refuse values of flags that have two meanings. Of lists jsonargparse would only say that it wants none."""
        flag = ""
        for word in arguments:
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                flag = name
            if not (word.startswith("--") and equals):
                value = word
            if value == "None" and flag:
                self.error(f"{flag} None: left out, {flag} stands for nothing; text is in quotes of its own")
            if not value.startswith(("{", "[")):
                continue
            try:
                check_yaml(value, free=flag.removeprefix("--").rpartition(".")[2] in FREE)
            except yaml.YAMLError as error:
                self.error(f"{flag}: {one_line(error, 200)}")

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
        except UnicodeDecodeError as error:  # of a file that was named where keys belong
            self.error(f"a file that is no text was given for a field that has keys of its own ({error})")

    def flags(self) -> list[str]:
        """List the flags of this parser."""
        return [option for action in self._actions for option in action.option_strings]


def _quote_several(words: list[str], flags: set[str]) -> list[str]:
    """Write several values of one of these flags as a list of quoted texts; a single value stays as it is."""
    found: list[str] = []
    values: list[str] = []  # those of the flag that was seen last
    for word in [*words, "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if len(values) > 1 and found and found[-1] in flags:
            values = [json.dumps(values)]
        found += [*values, word]
        values = []
    return found[:-1]


def plain_number(word: str) -> str:
    """A negative number with an exponent without it, -1000 for -1e3; any other word as it is."""
    if re.fullmatch(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}", word):
        return format(Decimal(word), "f")
    return word


def suggest(word: str, known: list[str]) -> str:
    """Return the known word that is meant, in brackets; nothing if there is none like it."""
    near = difflib.get_close_matches(word, known, n=1)
    if not near:
        return ""
    return f" (did you mean {near[0]}?)"
