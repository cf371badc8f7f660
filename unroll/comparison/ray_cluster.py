"""Let Ray start the same command on the nodes of its cluster, which share a disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unroll.errors import ComparisonError


def run_on_ray(
    command: list[str], workers: int, options: dict[str, Any], logs: Path, tell: Callable[[str], Any]
) -> dict[str, str]:
    """``workers`` tasks of Ray, each ``command`` in this folder, spread over the cluster that this machine is part of,
    or that RAY_ADDRESS names; without one over this machine's cores. A task whose node dies is started on another one.

    Returns the last line of each task that failed, by its number.

    Raises:
        ComparisonError: Ray is not installed, knows no such options, or its cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise ComparisonError("--cluster ray needs ray: pip install -e '.[ray]'") from None

    def work(number: int) -> str | None:
        with (logs / f"ray-{number}.log").open("a+") as log:
            code = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT).returncode
            log.seek(0)
            lines = log.read().splitlines()
        return f"exit code {code}: {lines[-1] if lines else 'no message'}" if code else None

    folder = Path.cwd()
    logs.mkdir(parents=True, exist_ok=True)
    logs = logs.absolute()
    try:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
        task = ray.remote(work).options(**{"scheduling_strategy": "SPREAD", "max_retries": -1, **options})
        jobs = {str(number): task.remote(number) for number in range(workers)}
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise ComparisonError(f"--cluster ray: {' '.join(str(error).split())}") from None
    machines = sum(node["Alive"] for node in ray.nodes())
    tell(f"{workers} tasks of Ray on {machines} machines; their output is in {logs}")
    failed = {}
    for number, job in jobs.items():
        try:
            why = ray.get(job)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
        if why:
            failed[number] = why
    ray.shutdown()
    return failed
