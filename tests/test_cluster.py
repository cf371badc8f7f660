"""compare.py under schedulers that are not here: SLURM, of which a stand-in runs the script that it is given; Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unroll.comparison.cluster import run_workers

ROOT = Path(__file__).parents[1]
SLURM = {  # its commands, as far as submitit uses them
    "sbatch": """for i in 0 1; do
    SLURM_JOB_ID=70$i SLURM_ARRAY_JOB_ID=700 SLURM_ARRAY_TASK_ID=$i SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 \\
        SLURM_NNODES=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost bash "${@: -1}" >/dev/null 2>&1 &
done
echo Submitted batch job 700""",
    "srun": """while [[ "$1" == -* ]]; do
    if [[ "$1" == --output || "$1" == --error ]]; then shift; fi
    shift
done
exec "$@\"""",
    "sacct": "echo 'JobID|State|NodeList'",
    "scontrol": "true",
}


def test_slurm_starts_the_command_as_often_as_it_is_told(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    for name, script in SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    options = {"slurm_partition": "gpu", "timeout_min": 600}
    failed = run_workers(["--nonsense"], "slurm", 2, options, tmp_path / "logs", told.append)
    assert told == [f"submitit's jobs 700_0, 700_1; their output is in {tmp_path / 'logs'}"]
    assert set(failed) == {"700_0", "700_1"}
    assert all("no option --nonsense" in why for why in failed.values())
    asked = (tmp_path / "logs/700_submission.sh").read_text()
    assert "#SBATCH --partition=gpu" in asked
    assert "#SBATCH --time=600" in asked


def test_ray_starts_the_command_and_says_which_failed(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.chdir(tmp_path)
    script = (
        "from pathlib import Path\nfrom unroll.comparison.ray_cluster import run_on_ray as run\n"
        "print(run(['sh', '-c', 'mkdir one || { echo no luck; exit 3; }'], 2, {'num_cpus': 1}, Path('logs'), print))\n"
        "from unroll.comparison.runs import ComparisonError\n"
        "try: run(['true'], 1, {'nonsense': 1}, Path('logs'), print)\n"
        "except ComparisonError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200
    )
    told, failed, error = result.stdout.splitlines()
    assert told.startswith("2 tasks of Ray on 1 machines")
    assert failed in ("{'0': 'exit code 3: no luck'}", "{'1': 'exit code 3: no luck'}")
    assert error.startswith("--cluster ray: Invalid option keyword nonsense")
