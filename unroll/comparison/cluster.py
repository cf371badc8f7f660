"""Let a scheduler start the same command on machines that share a disk, by submitit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unroll.comparison.launch import python_command, python_environment
from unroll.errors import ComparisonError, one_line

DAY = 24 * 60  # minutes


def run_workers(
    arguments: list[str], cluster: str, workers: int, options: dict[str, Any], logs: Path, tell: Callable[[str], Any]
) -> dict[str, str]:
    """Have ``workers`` jobs run ``compare.py`` with ``arguments`` in this folder, and wait for them; the last line of
    each that failed, by its id. They divide the cells by the locks of the run folders, so a job that is cut off costs
    no more than what its runs have not saved.

    Raises:
        ComparisonError: what starts them is not installed, has no such options, or there is no such cluster.
    """
    command = [*python_command("compare"), *arguments]
    jobs = submit(command, cluster, workers, options, logs)
    tell(f"submitit's jobs {', '.join(job.job_id for job in jobs)}; their output is in {logs}")
    return wait(jobs)


def submit(command: list[str], cluster: str, workers: int, options: dict[str, Any], logs: Path) -> list[Any]:
    """Jobs of submitit, under SLURM or as local processes."""
    try:
        import submitit
    except ImportError:
        raise ComparisonError(f"--cluster {cluster} needs submitit: pip install 'unroll-rl[cluster]'") from None
    function = submitit.helpers.CommandFunction(command, cwd=Path.cwd(), env=python_environment())
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**{"timeout_min": DAY, **options})  # submitit's own is 5 minutes
        with executor.batch():
            return [executor.submit(function) for _ in range(workers)]
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ComparisonError(f"--cluster {cluster}: {one_line(error)}") from None


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
