"""unroll compare: a grid of runs that several commands divide, that can be stopped anywhere; it ends with a table."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

from fake_runs import fake_run
from unroll.agents import schemas
from unroll.agents.common.run_folder import LOCK, is_locked, run_lock
from unroll.commands import compare, train
from unroll.comparison import pace, workers
from unroll.comparison.live import Show
from unroll.comparison.plan import plan
from unroll.comparison.variants import make_variants, split_backbones, varied_fields
from unroll.comparison.workers import Workers
from unroll.configs import load_config, save_config
from unroll.errors import CheckpointError

ROOT = Path(__file__).parents[2]
MAZE = "agent: ppo\nenv: TMaze10-v0\nn_steps: 16\nn_epochs: 4"
HOPPER = "condition: best\nevaluation: {targets: [50]}\ncontext: 5\nlog_every: 20"
SMALL = [  # of both agents, for runs of a second
    *("--batch_size", "32", "--backbone.d_model", "8", "--backbone.n_layers", "1", "--device", "cpu"),
    *("--evaluation.episodes", "2", "--steps", "512", "--checkpoint_every", "128"),
    *("--video", "false"),
]
GRID = ["--config", "maze.yaml", "hopper.yaml", "--backbones", "mingru", "--seeds", "1", "--threads", "1", *SMALL]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def in_a_folder(folder):
    """Where the grid's configs are."""
    (folder / "maze.yaml").write_text(MAZE)
    (folder / "hopper.yaml").write_text(HOPPER)
    return folder / "out"


def start(output, *arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "compare.py"), *GRID, "--output", str(output), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=output.parent,
    )


def scores_of(output):
    """What does not depend on the clock."""
    report = json.loads((output / "comparison.json").read_text())
    return {
        (name, backbone): (row["scores"], row["returns"], row["parameters"], row["evaluation_episodes"])
        for name, experiment in report["experiments"].items()
        for backbone, row in experiment["backbones"].items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid that two workers of submitit have finished."""
    pytest.importorskip("submitit")
    output = in_a_folder(tmp_path_factory.mktemp("grid"))
    process = start(output, "--jobs", "1", "--cluster", "local", "--workers", "2")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    return output, printed


def test_two_workers_divide_a_grid_and_every_cell_is_run_once(finished):
    output, printed = finished
    cells = sorted(path.parent for path in output.rglob("evaluation.json"))
    assert len(cells) == 2
    assert all(len(list(cell.glob("events*"))) == 1 for cell in cells)
    logs = [path.read_text() for path in (output / "workers").glob("*.out")]
    assert sum(log.count(": finished, ") for log in logs) >= 2
    assert "# Comparison of backbones" in printed
    assert len(scores_of(output)) == 2


def test_a_repeated_command_trains_nothing_and_reports_the_same(finished, monkeypatch, capsys):
    output, _ = finished
    monkeypatch.chdir(output.parent)
    monkeypatch.setattr(workers, "python_command", lambda name: [sys.executable, "nowhere.py"])
    before = scores_of(output)
    (output / "comparison.json").unlink()
    assert compare.main([*GRID, "--output", str(output)]) == 0
    assert scores_of(output) == before
    assert "2 of 2 runs were finished before" in capsys.readouterr().out
    assert compare.main(["--from", str(output)]) == 0
    assert scores_of(output) == before


def test_a_grid_of_other_settings_is_not_mixed_in(finished, monkeypatch, capsys):
    output, _ = finished
    monkeypatch.chdir(output.parent)
    assert compare.main([*GRID, "--output", str(output), "--learning_rate", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "learning_rate 0.0003, not 0.5" in line
    assert "seed0" in line


def test_a_grid_that_is_stopped_and_killed_ends_with_the_same_table(finished, tmp_path):
    output = in_a_folder(tmp_path)
    stopped = start(output, "--jobs", "2")
    wait_for(lambda: list(output.rglob("step_00000128")), stopped)
    stopped.send_signal(signal.SIGTERM)
    printed, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in printed
    assert not [path for path in output.rglob(LOCK) if is_locked(path.parent)]

    killed = start(output, "--jobs", "2")
    wait_for(lambda: any(is_locked(path.parent) for path in output.rglob(LOCK)), killed)
    killed.kill()  # its runs live on, and whoever comes next waits for them
    killed.communicate()

    last = start(output, "--jobs", "2")
    printed, errors = last.communicate(timeout=300)
    assert last.returncode == 0, printed + errors
    assert scores_of(output) == scores_of(finished[0])


def test_two_commands_divide_a_grid_and_the_death_of_one_with_its_run_leaves_nothing_undone(finished, tmp_path):
    output = in_a_folder(tmp_path)
    first, second = (start(output, "--jobs", "1") for _ in range(2))
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    wait_for(children.read_text, first)
    time.sleep(random.random() * 5)
    for pid in (first.pid, *map(int, children.read_text().split())):  # as if the machine were gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, printed + errors
    assert scores_of(output) == scores_of(finished[0])
    assert not list(output.rglob(".step_*"))


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cells_of(tmp_path, *flags, **changes):
    settings = dict(
        backbones=["mingru", "gru", "sharnn"],
        vary=[],
        config=[str(ROOT / "configs/ppo/tmaze.yaml")],
        seeds=1,
        jobs=2,
        threads=None,
    )
    settings |= dict(match_parameters=None, minutes=None, output=tmp_path / "out", video=True, reference=None)
    return plan(Namespace(**settings | changes), list(flags), [])


def test_backbones_have_the_parameters_of_the_first(tmp_path):
    widths = {cell.backbone: cell.config.backbone.d_model for cell in cells_of(tmp_path)}
    assert widths["mingru"] == 64  # the config's
    assert widths["sharnn"] < widths["gru"] < 64
    assert {cell.config.backbone.d_model for cell in cells_of(tmp_path, match_parameters=0)} == {64}
    assert min(cell.config.backbone.d_model for cell in cells_of(tmp_path, match_parameters=200_000)) > 64


def test_the_first_seed_of_all_comes_first_and_shows_itself(tmp_path):
    cells = cells_of(tmp_path, seeds=2)
    assert [cell.seed for cell in cells] == [0, 0, 0, 1, 1, 1]
    assert [cell.config.evaluation.video for cell in cells] == [True] * 3 + [False] * 3
    assert {cell.config.threads for cell in cells} == {max(1, (os.cpu_count() or 1) // 2)}


def train_script(tmp_path, monkeypatch, first, then=""):
    """Replace a run by a script that does something ``first``, copies a good run into its folder, and goes on."""
    good = fake_run(tmp_path / "good", "mingru", 0, 1.0)
    script = tmp_path / "fake_train.py"
    script.write_text(
        f"""
import os, pathlib, shutil, sys
good = {str(good)!r}
folder = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
{first}
shutil.copytree(good, folder, dirs_exist_ok=True)
{then}
"""
    )
    monkeypatch.setattr(workers, "python_command", lambda name: [sys.executable, str(script)])


def test_a_cell_that_fails_is_reported_and_stops_no_other(tmp_path, monkeypatch):
    train_script(
        tmp_path,
        monkeypatch,
        """
if "/gru/" in str(folder):
    sys.exit("something\\nunroll train: no luck")
""",
    )
    console = Console(record=True, width=200)
    work = Workers(cells_of(tmp_path), jobs=2)
    with Show(work, console) as show:
        work.run(show)
    ((cell, why),) = work.failed.items()
    assert cell.backbone == "gru"
    assert why == "exit code 1: no luck"
    assert {cell.backbone for cell in work.done_here} == {"mingru", "sharnn"}
    assert "tmaze, gru, seed 0: failed: exit code 1: no luck" in console.export_text()
    assert "failed" in render(show.table())


@pytest.mark.parametrize("finished_since", [False, True])
def test_a_cell_that_was_killed_here_has_failed_unless_another_command_finishes_it(
    finished_since, tmp_path, monkeypatch, capsys
):
    train_script(
        tmp_path,
        monkeypatch,
        """
if "/mingru/" in str(folder):
    print("a warning", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)
""",
        f"""
if {finished_since}:
    shutil.copytree(good, str(folder).replace("/gru/", "/mingru/"), dirs_exist_ok=True)
""",
    )
    (tmp_path / "maze.yaml").write_text(MAZE)
    monkeypatch.chdir(tmp_path)
    grid = ["--config", "maze.yaml", "--backbones", "mingru,gru", "--seeds", "1", "--jobs", "1", *SMALL]
    grid += ["--reference", "mingru"]
    assert compare.main([*grid, "--output", str(tmp_path / "out")]) == (0 if finished_since else 1)
    report = json.loads((tmp_path / "out/comparison.json").read_text())
    failed = {} if finished_since else {"maze, mingru, seed 0": "killed by signal 9 (Killed)"}
    assert report["failed"] == failed
    assert ("mingru" in report["experiments"]["maze"]["backbones"]) == finished_since
    said = capsys.readouterr().err
    assert ("killed by signal 9 (Killed)" in said) != finished_since
    assert ("no run of the reference mingru is finished" in said) != finished_since


def render(table):
    console = Console(record=True, width=200, markup=False)  # as unroll compare has it
    console.print(table)
    return console.export_text()


def test_progress_is_read_from_the_log(tmp_path):
    cells = cells_of(tmp_path)
    folder = cells[0].folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 20000, "a": 1}\n{"step": 25000, "a": 1}\n{"step": 300')
    assert cells[0].progress == 0.25
    assert cells[1].progress == 0
    shown = render(Show(Workers(cells, 1), Console()).table())
    assert " 25% │" in shown
    assert "0.2 of 3 runs" in shown


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (cell, *_) = cells_of(tmp_path)
    cell.folder.mkdir(parents=True)
    note = cell.folder / "note.txt"
    note.write_text("mine")
    cell.clear()
    assert note.exists()
    save_config(cell.config, cell.folder / "config.yaml")
    (cell.folder / "checkpoints").mkdir()
    cell.clear()
    assert not list(cell.folder.iterdir())


def test_a_cell_that_another_command_began_or_finished_meanwhile_is_not_taken(tmp_path):
    (cell, *_) = cells_of(tmp_path)
    cell.folder.mkdir(parents=True)
    began = cell.folder / "config.yaml"
    with run_lock(cell.folder):
        save_config(cell.config, began)
        assert cell.take() is None
    assert began.exists()
    (cell.folder / "evaluation.json").write_text("{}")
    pool = Workers([cell], 1)
    pool._start_free([cell])  # as if it had been found unfinished a moment ago
    assert not pool.running
    (cell.folder / "evaluation.json").unlink()
    assert cell.take() == cell.command()
    assert not began.exists()
    assert not is_locked(cell.folder)


def test_a_cell_that_was_evaluated_when_it_was_stopped_goes_on(tmp_path):
    (cell, *_) = cells_of(tmp_path)
    arguments = ["--agent", "ppo", "--env", "TMaze10-v0", "--steps", str(cell.config.steps)]
    fake_run(cell.folder, cell.backbone, 0, 1.0, arguments, steps=800)
    for last in (800, cell.config.steps):
        (cell.folder / f"checkpoints/step_{last:08d}").mkdir(parents=True)
        assert not cell.finished
        assert cell.take()[:2] == ["--resume", "true"]
    evaluation = json.loads((cell.folder / "evaluation.json").read_text())
    (cell.folder / "evaluation.json").write_text(json.dumps(evaluation | {"steps": last}))
    assert cell.finished
    assert cell.take() is None


def test_a_run_that_goes_on_takes_what_may_differ(tmp_path):
    flags = ["--keep", "5", "--log_every", "2", "--evaluation.n_envs", "1", "--device", "cpu"]
    (cell, *_) = cells_of(tmp_path, *flags, threads=1)
    fake_run(cell.folder, cell.backbone, 0, 1.0, ["--agent", "ppo", "--env", "TMaze10-v0"])
    (cell.folder / "checkpoints/step_00000800").mkdir(parents=True)
    goes_on = load_config(cell.command(), schemas())
    assert goes_on.resume
    assert (goes_on.keep, goes_on.log_every, goes_on.evaluation.n_envs) == (5, 2, 1)
    assert (goes_on.device, goes_on.threads, goes_on.evaluation.video) == ("cpu", 1, True)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    assert not is_locked(folder)
    arguments = ["--agent", "ppo", "--run_dir", str(folder), "--n_envs", "1", "--device", "cpu", "--steps", "1"]
    with run_lock(folder):
        assert is_locked(folder)
        with pytest.raises(CheckpointError, match="another process"), run_lock(folder):
            pass
        assert train.main(arguments) == 2
        save_config(load_config(arguments, schemas()), folder / "config.yaml")
        assert train.main([*arguments[2:4], "--resume", "true"]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert "another process is training in this folder" in line
    assert not is_locked(folder)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.chdir(in_a_folder(tmp_path).parent)
    grid = [*GRID, "--output", "out", "--cluster"]
    assert compare.main([*grid, "slurm"]) == 2
    assert compare.main([*grid, "local", "--cluster_options", "{nonsense: 1}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("unroll compare: --cluster") for line in lines)


def test_at_equal_time_a_backbone_makes_the_steps_that_were_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.1)
    flags = ["--n_steps", "16", "--batch_size", "32", "--device", "cpu"]
    cells = cells_of(tmp_path, *flags, minutes=0.5)
    measured = json.loads((tmp_path / "out" / "steps_per_second.json").read_text())
    assert [name.split()[0] for name in measured] == ["tmaze/mingru", "tmaze/gru", "tmaze/sharnn"]
    assert [cell.config.steps for cell in cells] == [round(30 * rate) for rate in measured.values()]
    assert all(10 < rate < 100_000 for rate in measured.values())
    monkeypatch.setattr(pace, "measure", None)
    again = cells_of(tmp_path, *flags, minutes=1)
    assert [cell.config.steps for cell in again] == [round(60 * rate) for rate in measured.values()]


def test_the_pace_is_measured_anew_where_it_may_be_another(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(pace, "measure", lambda config: float(measured.append(config) or len(measured)))
    first = cells_of(tmp_path, backbones=["gru"], minutes=1, seeds=2, threads=1)
    assert [cell.config.steps for cell in first] == [60, 60]
    for changes in (["--learning_rate", "1e-4"], ["--n_envs", "4"], ["--backbone.d_model", "8"]):
        (cell,) = cells_of(tmp_path, *changes, backbones=["gru"], minutes=1, threads=1)
        assert cell.config.steps == 60 * len(measured)
    assert len(measured) == 4

    same = ["--log_every", "7", "--evaluation.episodes", "3", "--checkpoint_every", "9", "--device", "cpu"]
    assert cells_of(tmp_path, *same, backbones=["gru"], minutes=1, threads=2)[0].config.steps == 60
    assert len(measured) == 4


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["mingru,gru"], ["mingru", "gru"]),
        (["mingru", "mingru:expansion=2,conv=4", "gru"], ["mingru", "mingru-expansion=2-conv=4", "gru"]),
        (["gru,mingru:conv=4,expansion=2", "my.module:Own"], ["gru", "mingru-conv=4-expansion=2", "Own"]),
        (["my.module:Own:width=3"], ["Own-width=3"]),
    ],
)
def test_backbones_are_read_with_their_options(words, labels):
    assert [variant.label for variant in make_variants(split_backbones(words), [])] == labels


def test_every_combination_of_varied_fields_is_a_row():
    rows = make_variants(["gru"], ["learning_rate=1e-3,3e-4", "net_arch=[64, 64],[8]"])
    assert [row.label for row in rows] == [
        "gru-learning_rate=1e-3-net_arch=64,64",
        "gru-learning_rate=1e-3-net_arch=8",
        "gru-learning_rate=3e-4-net_arch=64,64",
        "gru-learning_rate=3e-4-net_arch=8",
    ]
    assert rows[0].words == ["--backbone.name", "gru", "--learning_rate", "1e-3", "--net_arch", "[64, 64]"]
    assert varied_fields(rows[0].label) == ["learning_rate", "net_arch"]


def test_options_and_fields_are_compared_and_found_again_by_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    in_a_folder(tmp_path)
    grid = ["--config", "hopper.yaml", "--seeds", "1", "--jobs", "1", "--threads", "1", *SMALL, "--output", "out"]
    rows = ["--backbones", "mingru:conv=4", "--vary", "learning_rate=1e-3,1e-2", "--steps", "2"]
    assert compare.main([*grid, *rows]) == 0
    before = scores_of(Path("out"))
    assert [label for _, label in sorted(before)] == [
        "mingru-conv=4-learning_rate=1e-2",
        "mingru-conv=4-learning_rate=1e-3",
    ]
    assert "differ" not in capsys.readouterr().out  # what is varied on purpose is no fault of the comparison
    learning_rates = {
        load_config(["--config", str(path)], schemas()).learning_rate for path in Path("out").rglob("config.yaml")
    }
    assert learning_rates == {1e-3, 1e-2}
    assert compare.main(["--from", "out"]) == 0
    assert scores_of(Path("out")) == before


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (["--vary", "learning_rat=1,2"], "did you mean --learning_rate?"),
        (["--vary", "learning_rate=1"], "two values of it or more"),
        (["--vary", "seed=1,2"], "--seeds says how many"),
        (["--vary", "learning_rate=1e-3,2e-3", "learning_rate=1,2"], "one field is there twice"),
        (["--vary", "backbone.d_model=8,16", "--match_parameters", "900"], "says how large every backbone is"),
        (["--vary", "steps=1,2", "--minutes", "1"], "one of them"),
        (["--backbones", "mingru", "mingru"], "mingru is there twice"),
        (["--backbones", "mingru:conv=,expansion=2"], "options are written as"),
        (["--backbones", "mingru:konv=4"], "did you mean conv?"),
        (["--backbones", "mingru,gru", "--reference", "lstm"], "reference 'lstm': the rows are mingru, gru"),
        (["--backbones", "mingru", "--workers", "2"], "--workers is for --cluster"),
        (["--backbones", "mingru", "--cluster_options", "{timeout_min: 5}"], "--cluster_options is for --cluster"),
    ],
)
def test_a_mistake_in_a_row_is_one_line(rows, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    in_a_folder(tmp_path)
    arguments = ["--config", "hopper.yaml", "--output", "out", *rows]
    try:
        code = compare.main(arguments)
    except SystemExit as left:
        code = left.code
    assert code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line in printed
    assert not Path("out").exists()
