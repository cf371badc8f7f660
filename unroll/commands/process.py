"""How a command ends: 0, or one line on standard error and 2 for what the user can mend, 130 after Ctrl-C."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from unroll.commands.threads import prepare_process


def names(arguments: list[str], flag: str, value: str | None) -> bool:
    """Whether the command line itself gives this value to this flag. Only then may it be code to import: a file or the
    environment never names any."""
    return value is not None and (f"{flag}={value}" in arguments or (flag, value) in itertools.pairwise(arguments))


def run_command(name: str, function: Callable[..., int], *arguments: Any) -> int:
    """The exit code of ``function(*arguments)``; torch is imported only now, when the arguments are right."""
    prepare_process()
    try:
        from unroll.errors import UserError

        try:
            return function(*arguments)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
        except OSError as error:  # a folder that cannot be written, a full disk
            print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """End the process. One of torchrun's does so without taking its libraries apart: the threads of the process group
    now and then abort it then, when all is written, and the job would count as failed."""
    if "RANK" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
