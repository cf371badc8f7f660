"""Let a scheduler start ``unroll compare`` on machines that share a disk, by submitit."""

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
    """Have ``workers`` jobs run ``unroll compare`` with ``arguments`` in this folder, and wait for them.

    The jobs divide the cells of the grid by the locks of the run folders. A job that is cut off costs no more than
    what its runs have not saved.

    Returns:
        The last line of each job that failed, by the job's id.

    Raises:
        ComparisonError: submitit is not installed, it does not know the options, or there is no such cluster.
    """
    command = [*python_command("compare"), *arguments]
    jobs = submit(command, cluster, workers, options, logs)
    tell(f"submitit's jobs {', '.join(job.job_id for job in jobs)}; their output is in {logs}")
    return wait(jobs)


def submit(command: list[str], cluster: str, workers: int, options: dict[str, Any], logs: Path) -> list[Any]:
    """Start jobs of submitit, under SLURM or as local processes."""
    try:
        import submitit
    except ImportError:
        raise ComparisonError(f"--cluster {cluster} needs submitit: pip install 'unroll-rl[cluster]'") from None

    function = submitit.helpers.CommandFunction(command, cwd=Path.cwd(), env=python_environment())
    parameters = {"timeout_min": DAY, **options}  # submitit's own default is 5 minutes
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**parameters)
        with executor.batch():
            return [executor.submit(function) for _ in range(workers)]
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ComparisonError(f"--cluster {cluster}: {one_line(error)}") from None


def wait(jobs: list[Any]) -> dict[str, str]:
    """Wait for the jobs; return the last line of each that failed, by its id."""
    import submitit

    # The text of such an error has many lines, of which one says why.
    failed = {}
    for job in jobs:
        try:
            job.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            failed[job.job_id] = last_error(str(error))
    return failed


def last_error(text: str) -> str:
    """Return the last line that names an error, or else the last line."""
    lines = text.strip().splitlines()
    for line in reversed(lines):
        if "Error: " in line:
            return line
    return lines[-1]
