"""The command ``unroll``: its first argument names a file in ``commands``, which does the rest."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "train one agent from a config",
    "evaluate": "play a trained run and score it",
    "compare": "train several backbones and report how they compare",
    "record": "record a dataset while an agent plays",
    "inspect": "say what a dataset holds and whether it can be trained on",
    "backbones": "list the backbones with what each costs",
    "export": "write one step of a trained policy for ONNX Runtime or torch.export",
    "share": "upload a run to the Hugging Face Hub, or download one",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    name = words[0] if words else "--help"
    if name in COMMANDS:
        try:
            module = importlib.import_module(f"unroll.commands.{name}")
            return module.main(words[1:])
        except KeyboardInterrupt:  # before the command itself hears it, while it is imported
            print(f"unroll {name}: interrupted", file=sys.stderr)
            return 130
    listed = "\n".join(f"  {command:<10} {about}" for command, about in COMMANDS.items())
    if name in ("-h", "--help"):
        print(f"usage: unroll COMMAND ...\n\n{listed}\n\nunroll COMMAND --help explains a command.")
        return 0
    print(f"unroll: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
    return 2
