"""Say what a dataset holds and what is wrong with it: unroll inspect my.hdf5

The exit code is 0 if it can be trained on, else 2."""

from __future__ import annotations

import argparse
import sys

from unroll.envs.datasets.doctor import print_report
from unroll.envs.datasets.sources import FORMS, read_episodes
from unroll.errors import DatasetError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m unroll.envs.datasets.sources", description="What a dataset holds, and its faults."
    )
    parser.add_argument("source", help=FORMS)
    parser.add_argument("--download", action="store_true", help="fetch a D4RL file that is missing")
    options = parser.parse_args(arguments)
    try:
        episodes = read_episodes(options.source, options.download)
    except (DatasetError, OSError) as error:  # OSError: a name that the file system does not allow
        print(error, file=sys.stderr)
        return 2
    return 0 if print_report(episodes, options.source) else 2
