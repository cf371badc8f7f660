"""Count what is promised: python -m benchmarks.reliability COMMAND [--help]"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "kills": "training runs that are killed at random moments: they go on to the same bits",
    "combinations": "random configs: each is stopped, resumed to the same bits, evaluated again and exported",
    "malformed": "damaged checkpoints, configs and datasets: each is refused in one line",
    "fuzz": "random mutations of what the loaders read: no exception that is not theirs",
    "soak": "half an hour of training: memory, descriptors, threads and files stay",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        listed = "".join(f"\n  {name:<14}{what}" for name, what in COMMANDS.items())
        print(f"usage: python -m benchmarks.reliability COMMAND [--help]{listed}", file=sys.stderr)
        return 2
    return importlib.import_module(f"benchmarks.reliability.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
