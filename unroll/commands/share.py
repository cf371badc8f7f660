"""Share a run on the Hugging Face Hub: python share.py upload runs/… USER/NAME, python share.py download USER/NAME"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from unroll.commands.process import run_command
from unroll.configs import Parser


def make_parser() -> Parser:
    parser = Parser(prog="share.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subcommands()
    up = Parser(prog="share.py upload", description="Upload a run with a card of what it is.", allow_abbrev=False)
    up.add_argument("run", help="a run folder")
    up.add_argument("repository", help="USER/NAME on the hub; made if it is not there")
    up.add_argument("--private", action="store_true", help="only you can see it")
    up.add_argument("--best", action="store_true", help="the best checkpoint instead of the last one")
    up.add_argument("--events", action="store_true", help="also TensorBoard's files, whose names hold your machine's")
    commands.add_subcommand("upload", up)
    down = Parser(prog="share.py download", description="Download a run, and verify it.", allow_abbrev=False)
    down.add_argument("repository", help="USER/NAME on the hub")
    down.add_argument("--run_dir", type=str, help="a new folder for it; default: runs/USER/NAME")
    down.add_argument("--revision", type=str, help="a branch, tag or commit; default: the newest")
    down.add_argument("--events", action="store_true", help="also TensorBoard's files")
    commands.add_subcommand("download", down)
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    options = parsed[parsed.subcommand]
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", options.repository, re.ASCII):
        parser.error(f"{options.repository!r}: a repository is USER/NAME")
    return run_command("share.py", {"upload": upload, "download": download}[parsed.subcommand], options)


def upload(options: Namespace) -> int:
    from unroll.hub import hub
    from unroll.hub.card import model_card
    from unroll.hub.files import stage
    from unroll.hub.verify import verify

    api, run = hub.connect(), Path(options.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stage(run, folder, options.best, options.events)
        shared = verify(folder, options.run)
        files = shared.files
        (folder / "README.md").write_text(model_card(shared, options.repository))
        url = hub.upload(api, folder, options.repository, options.private)
    for name, size in files.items():
        print(f"{size:>12,}  {name}")
    print(f"shared        {url}\nto get it     python share.py download {options.repository}")
    return 0


def download(options: Namespace) -> int:
    from unroll.errors import ShareError
    from unroll.hub import hub
    from unroll.hub.verify import verify

    api, run = hub.connect(), Path(options.run_dir or Path("runs", options.repository))
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ShareError(f"{run}: is not empty; another --run_dir")
    near = next(
        folder for folder in run.absolute().parents if folder.is_dir()
    )  # of its disk, so that it can be renamed
    folder = Path(tempfile.mkdtemp(prefix=f".{run.name}.", dir=near))
    try:
        commit = hub.download(api, options.repository, options.revision, folder, options.events)
        shared = verify(folder, options.repository)
        folder.chmod(0o755)  # mkdtemp's are private
        run.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    name = shared.config.backbone.name
    own = f" --backbone {name}" if ":" in name else ""
    print(f"run folder    {run}, commit {commit}\nscore again   python evaluate.py {shlex.quote(str(run))}{own}")
    return 0
