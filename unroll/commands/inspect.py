"""Say what a dataset holds and what is wrong with it: unroll inspect my.hdf5

The exit code is 0 if the dataset can be trained on, else 2.
"""

from __future__ import annotations

import argparse
import sys

from unroll.envs.datasets.doctor import print_report
from unroll.envs.datasets.sources import FORMS, read_episodes
from unroll.errors import DatasetError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="unroll inspect", description="Say what a dataset holds and what is wrong with it."
    )
    parser.add_argument("source", help=FORMS)
    parser.add_argument("--download", action="store_true", help="fetch a D4RL file that is missing")
    options = parser.parse_args(arguments)

    try:
        episodes = read_episodes(options.source, options.download)
    except (DatasetError, OSError) as error:  # OSError: a name that the file system does not allow
        print(error, file=sys.stderr)
        return 2
    fit = print_report(episodes, options.source)
    return 0 if fit else 2
