"""Let submitit start the same command on machines that share a disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from comparison.runs import ComparisonError

COMPARE = Path(__file__).resolve().parents[1] / "compare.py"


def submit(arguments: list[str], cluster: str, workers: int, options: dict[str, Any], logs: Path) -> list[Any]:
    """``workers`` jobs of submitit, each ``compare.py`` with ``arguments``. They divide the cells among them by the
    locks of the run folders, so a job that is cut off costs no more than what its runs have not saved.

    Raises:
        ComparisonError: submitit is not installed, has no such options, or there is no such cluster.
    """
    try:
        import submitit
    except ImportError:
        raise ComparisonError("--cluster needs submitit: pip install -e '.[cluster]'") from None
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**options)
        with executor.batch():
            return [executor.submit(work, arguments) for _ in range(workers)]
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ComparisonError(f"--cluster {cluster}: {' '.join(str(error).split())}") from None


def work(arguments: list[str]) -> int:
    """One worker, in its own process; its exit code."""
    return subprocess.run([sys.executable, str(COMPARE), *arguments], cwd=COMPARE.parent).returncode
