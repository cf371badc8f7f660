"""Compare backbones from Python: train each with several seeds, and read intervals instead of single numbers.

python examples/compare_backbones.py    a few minutes; STEPS=1024 before it is a shorter try

Each run is an ordinary one: a second call goes on with what is missing. ``unroll compare`` does this for grids, on
several cores or machines.
"""

import os
from pathlib import Path

from unroll.cli import main
from unroll.comparison.experiments import group
from unroll.comparison.publish import publish
from unroll.comparison.report import make_report
from unroll.comparison.runs import find_runs

STEPS = os.environ.get("STEPS", "40000")
FOLDER = Path("runs/examples/compare")
BACKBONES = ["mingru", "lstm"]
SEEDS = 3

for backbone in BACKBONES:
    for seed in range(SEEDS):
        run = FOLDER / backbone / f"seed{seed}"
        if (run / "evaluation.json").is_file():
            continue
        arguments = ["--config", "ppo/cartpole_masked", "--backbone.name", backbone, "--seed", str(seed)]
        if (run / "config.yaml").is_file():  # an earlier call was interrupted there
            arguments += ["--resume", "true"]
        code = main(["train", *arguments, "--steps", STEPS, "--run_dir", str(run), "--evaluation.episodes", "10"])
        if code:
            raise SystemExit(code)

# The report is a dictionary; the same is written as Markdown, CSV, JSON and pictures.
experiments = group(find_runs([FOLDER]), BACKBONES)
report = make_report(experiments, reference="lstm")
publish(FOLDER, experiments, report)
for experiment in report["experiments"].values():
    for backbone, row in experiment["backbones"].items():
        low, high = row["iqm_interval"]
        seeds = ", ".join(f"{score:.1f}" for score in row["scores"])
        print(f"{backbone:8} interquartile mean {row['iqm']:.1f}, interval {low:.1f} to {high:.1f}, by seeds {seeds}")
print(f"{FOLDER / 'comparison.md'}, {FOLDER / 'comparison.png'}")
