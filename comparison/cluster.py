"""Let submitit start the same command on machines that share a disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from comparison.runs import ComparisonError

DAY = 24 * 60  # minutes
COMPARE = Path(__file__).resolve().parents[1] / "compare.py"


def submit(arguments: list[str], cluster: str, workers: int, options: dict[str, Any], logs: Path) -> list[Any]:
    """``workers`` jobs of submitit, each ``compare.py`` with ``arguments`` in this folder. They divide the cells by the
    locks of the run folders, so a job that is cut off costs no more than what its runs have not saved.

    Raises:
        ComparisonError: submitit is not installed, has no such options, or there is no such cluster.
    """
    try:
        import submitit
    except ImportError:
        raise ComparisonError("--cluster needs submitit: pip install -e '.[cluster]'") from None
    command = submitit.helpers.CommandFunction([sys.executable, str(COMPARE), *arguments], cwd=Path(os.getcwd()))
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**{"timeout_min": DAY, **options})  # submitit's own is 5 minutes
        with executor.batch():
            return [executor.submit(command) for _ in range(workers)]
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ComparisonError(f"--cluster {cluster}: {' '.join(str(error).split())}") from None


def wait(jobs: list[Any]) -> dict[str, str]:
    """Wait for the jobs; the last line of each that failed, by its id."""
    import submitit

    failed = {}
    for job in jobs:
        try:
            job.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            lines = str(error).strip().splitlines()
            failed[job.job_id] = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
    return failed
