"""python -m benchmarks.reliability NAME …: what is promised about crashes, damage and long runs, measured."""

from __future__ import annotations

import importlib
import sys

NAMES = ("kills", "soak")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in NAMES:
        print(f"python -m benchmarks.reliability: give one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"benchmarks.reliability.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
