"""Say what a dataset holds and what is wrong with it: unroll inspect my.hdf5 [other.hdf5 …] [--page report.png]

The exit code is 0 if the dataset can be trained on, else 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from unroll.envs.datasets.doctor import print_report
from unroll.envs.datasets.joining import join, what_each_brings
from unroll.envs.datasets.sources import FORMS, check_different, read_episodes
from unroll.errors import DatasetError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="unroll inspect", description="Say what a dataset holds and what is wrong with it."
    )
    parser.add_argument("source", nargs="+", help=f"{FORMS}; several of one space are joined")
    parser.add_argument("--download", action="store_true", help="fetch a D4RL file that is missing")
    parser.add_argument(
        "--page", metavar="FILE.png", help="also draw it on one page: returns, lengths, coverage, actions"
    )
    options = parser.parse_args(arguments)

    page = None
    if options.page is not None:
        page = Path(os.path.expanduser(options.page))
        if page.suffix != ".png" or not page.parent.is_dir():
            print(f"--page {options.page}: must end in .png and be in a folder that exists", file=sys.stderr)
            return 2

    try:
        check_different(options.source)
        several = [read_episodes(source, options.download) for source in options.source]
        source = " + ".join(options.source)
        episodes = several[0]
        if len(several) > 1:
            episodes = join(several, options.source)
            print(*what_each_brings(several, options.source), sep="\n")
        fit = print_report(episodes, source)
        if page is not None:
            from unroll.pictures.dataset import draw_dataset  # matplotlib takes a second

            draw_dataset(episodes, source, page)
            print(f"page: {page}")
    except (DatasetError, OSError) as error:  # OSError: a name that the file system does not allow, a full disk
        print(error, file=sys.stderr)
        return 2
    return 0 if fit else 2
