"""unroll compare under SLURM, of which a stand-in runs the script that it is given."""

import os
from pathlib import Path

import pytest

from unroll.comparison.cluster import run_workers

ROOT = Path(__file__).parents[2]
SLURM = {  # its commands, as far as submitit uses them
    # A job begins when submitit has written what it is to do, which is after sbatch has returned.
    "sbatch": """for i in 0 1; do
    (
        until [ -e "$(dirname "${@: -1}")/700_${i}_submitted.pkl" ]; do sleep 0.1; done
        SLURM_JOB_ID=70$i SLURM_ARRAY_JOB_ID=700 SLURM_ARRAY_TASK_ID=$i SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 \\
            SLURM_NNODES=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost bash "${@: -1}"
    ) >/dev/null 2>&1 &
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
