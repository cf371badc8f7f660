"""Count what the project promises: python -m tests.reliability kills | combinations | malformed | fuzz | soak"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("kills", "combinations", "malformed", "fuzz", "soak")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m tests.reliability {' | '.join(COMMANDS)} [--help]")
    sys.exit(importlib.import_module(f"tests.reliability.{sys.argv[1]}").main(sys.argv[2:]))
