"""Share a run on the Hugging Face Hub: unroll share upload runs/… USER/NAME, unroll share download USER/NAME"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from unroll.commands.process import Reporting, expand_home, typed
from unroll.configs import Parser
from unroll.errors import ShareError


def make_parser() -> Parser:
    parser = Parser(prog="unroll share", description=__doc__, allow_abbrev=False)
    commands = parser.add_subcommands()
    up = Parser(prog="unroll share upload", description="Upload a run with a card of what it is.", allow_abbrev=False)
    up.add_argument("run", help="a run folder")
    up.add_argument("repository", help="USER/NAME on the hub; made if it is not there")
    up.add_argument("--private", action="store_true", help="only you can see it")
    up.add_argument("--best", action="store_true", help="the best checkpoint instead of the last one")
    up.add_argument("--events", action="store_true", help="also TensorBoard's files, whose names hold your machine's")
    commands.add_subcommand("upload", up)
    down = Parser(prog="unroll share download", description="Download a run, and verify it.", allow_abbrev=False)
    down.add_argument("repository", help="USER/NAME on the hub")
    down.add_argument("--run_dir", type=str, help="a new folder for it; default: runs/USER/NAME")
    down.add_argument("--revision", type=str, help="a branch, tag or commit; default: the newest")
    down.add_argument("--events", action="store_true", help="also TensorBoard's files")
    commands.add_subcommand("download", down)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Upload or download; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    options = parsed[parsed.subcommand]
    expand_home(options, "run" if parsed.subcommand == "upload" else "run_dir")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", options.repository, re.ASCII):
        parser.error(f"{options.repository!r}: a repository is USER/NAME")
    with Reporting("unroll share") as report:
        if parsed.subcommand == "upload":
            upload(options)
        else:
            download(options)
    return report.code


def upload(options: Namespace) -> None:
    """Put a run on the hub, with a card."""
    from unroll.hub import client
    from unroll.hub.card import model_card
    from unroll.hub.files import stage
    from unroll.hub.verify import verify

    api = client.connect()

    # What goes up is verified as if it had come down.
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stage(Path(options.run), folder, options.best, options.events)
        shared = verify(folder, options.run)
        files = shared.files
        (folder / "README.md").write_text(model_card(shared, options.repository))
        url = client.upload(api, folder, options.repository, options.private)
    for name, size in files.items():
        print(f"{size:>12,}  {name}")
    print(f"shared        {url}\nto get it     {typed('share')} download {options.repository}")


def download(options: Namespace) -> None:
    """Fetch a run from the hub into a new folder, and verify it."""
    from unroll.hub import client
    from unroll.hub.card import evaluate_flags
    from unroll.hub.verify import verify

    api = client.connect()
    run = Path(options.run_dir or Path("runs", options.repository))
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ShareError(f"{run}: is not empty; another --run_dir")

    # Into a folder on the same disk, so that it can be renamed once it is verified.
    near = next(folder for folder in run.absolute().parents if folder.is_dir())
    folder = Path(tempfile.mkdtemp(prefix=f".{run.name}.", dir=near))
    try:
        commit = client.download(api, options.repository, options.revision, folder, options.events)
        shared = verify(folder, options.repository)
        folder.chmod(0o755)  # a folder of mkdtemp is private
        run.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    again = f"{typed('evaluate')} {shlex.quote(str(run))}{evaluate_flags(shared)}"
    print(f"run folder    {run}, commit {commit}\nscore again   {again}")
