"""Environments in processes of their own: the same rollouts, no hang, no orphan."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fragile  # noqa: F401 - registers its environments
from ppo_runs import NORMALIZED, ROOT, TINY, agent_of, assert_one_line
from unroll.agents import schemas
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.ppo.training import make_ppo
from unroll.commands import train
from unroll.configs import load_config
from unroll.envs import make_vec_env
from unroll.errors import EnvError

CARTPOLE = ["--env", "CartPoleNoVel-v1", *NORMALIZED, "--vector", "processes"]


@pytest.fixture
def vector():
    vector = make_vec_env("Fragile-v0", 3, processes=True)
    vector.reset()
    vector.step(np.zeros(3, int))
    yield vector
    begin = time.monotonic()
    vector.close()
    vector.close()
    assert time.monotonic() - begin < 8
    assert not any(process.is_alive() for process in vector.processes)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (1, "its process ended with exit code 3, after the action 1"),
        (2, r"its process was ended by signal 9 \(SIGKILL\), after the action 2"),
        (3, r"ValueError: the arm broke \(fragile.py, line \d+\), in step 2 of episode 1 of this process, after the"),
    ],
)
def test_a_worker_that_dies_in_a_step_is_an_error_that_names_it(vector, action, expected):
    begin = time.monotonic()
    with pytest.raises(EnvError, match=r"^environment 1 \(Fragile-v0\): " + expected + ".*$"):
        vector.step(np.array([0, action, 0]))
    assert time.monotonic() - begin < 5


def test_a_worker_that_is_killed_between_two_steps_is_an_error_that_names_it(vector):
    vector.processes[2].kill()
    begin = time.monotonic()
    with pytest.raises(EnvError, match=r"^environment 2 \(Fragile-v0\): .*SIGKILL.*, after the action 0$"):
        vector.env_method("action_masks")
    with pytest.raises(EnvError, match="is closed"):  # not what environment 0 has answered since
        vector.env_method("action_masks", indices=[0])
    assert time.monotonic() - begin < 5


def test_a_worker_that_never_answers_is_killed_when_the_vector_is_closed(vector):
    vector.step_async(np.array([0, 4, 0]))


def test_an_environment_that_cannot_be_made_is_an_error():
    with pytest.raises(EnvError, match=r"^environment 0 \(Unmakeable-v0\): RuntimeError: no display"):
        make_vec_env("Unmakeable-v0", 2, processes=True)


def test_methods_of_the_outermost_wrapper_are_within_reach(vector):
    assert vector.has_attr("action_masks")
    assert not vector.has_attr("action_msks")
    assert np.stack(vector.env_method("action_masks")).tolist() == [[True, False, False, False, False]] * 3
    assert vector.env_method("get_total_steps", indices=[1]) == [1]  # EpisodeMonitor's


@pytest.mark.parametrize(
    "arguments",
    [["--env", "HopperNoVel-v5", *NORMALIZED], ["--env", "ToyPicture-v0", "--previous_action", "true"]],
)
def test_processes_learn_what_one_process_learns_bit_for_bit(arguments):
    agents = [agent_of(*arguments, "--vector", vector)[0] for vector in ("serial", "processes")]
    try:
        for name in ("observations", "actions", "rewards", "returns"):
            ours, theirs = (getattr(agent.rollout_buffer, name) for agent in agents)
            for a, b in zip(*([x.values() if isinstance(x, dict) else [x] for x in (ours, theirs)]), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
        states = [agent.get_env().env_method("save_state") for agent in agents]
        np.testing.assert_equal(*states)  # also of the episodes that go on
        weights = [agent.policy.state_dict() for agent in agents]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    finally:
        agents[1].get_env().close()


def test_observations_have_the_dtype_of_their_space():
    serial, processes = (make_vec_env("Fragile-v0", 2, seed=1, processes=p) for p in (False, True))
    try:
        for _ in range(2):
            ours, theirs = (v.reset() for v in (serial, processes))
            assert ours.dtype == theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
            ours, theirs = (v.step(np.zeros(2, int)) for v in (serial, processes))
            for a, b in zip(ours[:3], theirs[:3], strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    finally:
        processes.close()


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("Unmakeable-v0", "environment 0 (Unmakeable-v0): RuntimeError: no display"),
        ("Mortal-v0", "environment 0 (Mortal-v0): its process ended with exit code 3, after the action ["),
    ],
)
def test_a_worker_that_dies_ends_training_in_one_line(env_id, expected, tmp_path, capsys):
    arguments = [*TINY, "--env", env_id, "--vector", "processes", "--run_dir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    assert_one_line(capsys, expected)


def test_workers_leave_signals_to_their_parent(vector):
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in vector.processes:
            os.kill(process.pid, number)
        vector.step(np.zeros(3, int))


def group(leader):
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def assert_all_gone(leader):
    for _ in range(100):
        if not group(leader):
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {[Path(f'/proc/{pid}/cmdline').read_text() for pid in group(leader)]}")


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def leader(*command):
    """A process that leads a session of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@linux
def test_a_sigterm_to_the_training_saves_and_ends_all_processes(tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, *CARTPOLE, "--steps", "10000000", "--threads", "1", "--evaluation.every", "0"]
    process = leader("train.py", *arguments, "--run_dir", str(run))
    for _ in range(1200):
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text():
            break
        time.sleep(0.05)
    assert len(group(process.pid)) >= 4  # itself, the server, two workers
    begin = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert time.monotonic() - begin < 10
    assert "Traceback" not in output
    stopped = read_checkpoint(latest_checkpoint(run))[1]["num_timesteps"]
    assert f"stopped at step {stopped}" in output
    assert_all_gone(process.pid)


STEPPING = """
import numpy as np
from unroll.envs import make_vec_env
vector = make_vec_env("CartPole-v1", 2, processes=True)
vector.reset()
print("ready", flush=True)
while True:
    vector.step(np.zeros(2, int))
"""


HANGING = """
import numpy as np
from unroll.envs import make_vec_env
import fragile
vector = make_vec_env("Fragile-v0", 2, processes=True)
vector.reset()
vector.step_async(np.array([0, 4]))
print("ready", flush=True)
vector.step_wait()
"""


@linux
@pytest.mark.parametrize("script", [STEPPING, HANGING])
def test_no_process_is_left_when_their_parent_is_killed(script, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    process = leader("-c", script)
    assert process.stdout.readline() == "ready\n"
    assert len(group(process.pid)) >= 4
    process.kill()
    output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output
    assert_all_gone(process.pid)


def test_an_agent_that_nobody_closes_leaves_no_process():
    agent = make_ppo(load_config([*TINY, *CARTPOLE], schemas()), pytest.fail)
    processes = agent.get_env().unwrapped.processes
    del agent
    gc.collect()
    assert not any(process.is_alive() for process in processes)
