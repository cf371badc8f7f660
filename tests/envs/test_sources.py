from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from unroll.commands.inspect import main
from unroll.envs import load_episodes
from unroll.envs.datasets.doctor import problems
from unroll.envs.datasets.sources import SOURCES
from unroll.envs.datasets.statistics import find_outside
from unroll.errors import DatasetError


def report(source, capsys):
    code = main([str(source)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_an_unknown_kind_of_source_lists_the_known():
    with pytest.raises(DatasetError, match="unknown kind of source 'http'; a source is minari:ID"):
        load_episodes("http://example.org/x.hdf5")
    with pytest.raises(DatasetError, match="names no dataset"):
        load_episodes("d4rl:")
    assert set(SOURCES) == {"minari", "d4rl", "embedded", "file"}


def test_embedded_datasets_are_found_by_name(fields, write, tmp_path, monkeypatch):
    monkeypatch.setattr("unroll.envs.datasets.sources.EMBEDDED", tmp_path)
    write(fields)
    assert len(load_episodes("embedded:data")) == 3
    for name in ("none", "../data", ""):
        with pytest.raises(DatasetError, match=r"there is data|names no dataset"):
            load_episodes(f"embedded:{name}")


def test_a_file_whose_name_has_a_colon_is_a_file(fields, write, tmp_path):
    path = write(fields).rename(tmp_path / "d4rl:mine.hdf5")
    assert len(load_episodes(str(path))) == 3


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("observations", 5, np.nan, "observations is NaN or infinite in 1 rows, first in row 5"),
        ("actions", 3, np.inf, "actions is NaN or infinite in 1 rows, first in row 3"),
        ("rewards", 7, -np.inf, "rewards is NaN or infinite in 1 rows, first in row 7"),
        ("rewards", 2, 1e300, "rewards is NaN or infinite in 1 rows, first in row 2"),
    ],
)
def test_non_finite_values_are_named_with_count_and_first_row(fields, write, capsys, name, row, value, message):
    fields[name] = fields[name].astype(np.float64)
    fields[name][row] = value
    path = write(fields)
    with pytest.raises(DatasetError, match=message) as error:
        load_episodes(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert f"unroll inspect {path}" in str(error.value)
    code, out, err = report(path, capsys)
    assert code == 2
    assert f"can be trained on: no: {message}" in out
    assert not err


def test_actions_one_short_are_named_and_the_doctor_says_so_in_one_line(fields, write, capsys):
    fields["actions"] = fields["actions"][:-1]
    code, out, err = report(write(fields), capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "actions has 11 rows, observations 12" in err


def test_widths_that_the_environment_does_not_have_are_named(fields, write):
    path = write(fields, env="Pendulum-v1")  # 3 numbers seen, 1 done
    with pytest.raises(DatasetError, match="actions is 2 wide, Pendulum-v1's are 1"):
        load_episodes(str(path))
    path = write(fields | {"observations": np.zeros((12, 5)), "actions": np.zeros((12, 1))}, env="Pendulum-v1")
    with pytest.raises(DatasetError, match="observations is 5 wide, Pendulum-v1's are 3"):
        load_episodes(str(path))
    path = write(fields | {"observations": np.zeros((12, 4))}, env="CartPole-v1")
    with pytest.raises(DatasetError, match=r"actions is Box\(-1, 1, 2 wide\), CartPole-v1's are Discrete\(2\)"):
        load_episodes(str(path))


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside"),
    [
        (-1.0, 1.0, 1.0009, 1.0011),
        (-1e-4, 1e-4, 1.0009e-4, 1.01e-4),
        (-1000.0, 1000.0, 1000.9, 1001.1),
        (0.1, 0.1, 0.1, 0.1001),  # no choice, and 0.1 is rounded
    ],
)
def test_what_an_action_may_be_off_by_is_a_share_of_its_range(low, high, inside, outside):
    space = gym.spaces.Box(low, high, (1,))
    assert find_outside(np.array([[low], [inside]]), space)[0] == 0
    assert find_outside(np.array([[inside], [outside], [low - (outside - high)]]), space) == (2, 1)


def test_actions_outside_of_the_space_are_counted(fields, write):
    fields["actions"] = np.full((12, 1), 1.5, np.float32)
    fields["actions"][[2, 9], 0] = 2.5, -2.0005  # Pendulum's box is ±2; the second is within the tolerance
    with pytest.raises(DatasetError, match=r"actions lies outside of Box\(-2, 2, 1 wide\) in 1 rows, first in row 2"):
        load_episodes(str(write(fields, env="Pendulum-v1")))
    discrete = fields | {"observations": np.zeros((12, 4)), "actions": np.arange(12) % 3}
    with pytest.raises(DatasetError, match=r"actions lies outside of Discrete\(2\) in 4 rows, first in row 2"):
        load_episodes(str(write(discrete, env="CartPole-v1")))


def test_arrays_that_do_not_fit_each_other_are_problems(make_episodes):
    episodes = make_episodes([3, 4])
    assert problems(episodes) == []
    assert problems(replace(episodes, lengths=np.array([3, 0, 4]))) != []
    assert "add up to 8" in problems(replace(episodes, lengths=np.array([3, 5])))[0]
    assert "rewards has 6 rows" in problems(replace(episodes, rewards=episodes.rewards[:-1]))[0]
    assert "terminated has 1 rows for 2 episodes" in problems(replace(episodes, terminated=np.ones(1, bool)))[0]
    assert "no steps" in problems(replace(episodes, lengths=np.array([7, 0])))[0]


def test_the_report_states_the_facts(fields, write, capsys):
    n = 12
    fields["terminals"][11] = False
    observations = np.random.default_rng(0).normal(size=(n, 11))
    observations[:, 4] = 3
    actions = np.zeros((n, 3))
    actions[:6] = 1
    fields |= {"observations": observations, "actions": actions}
    code, out, err = report(write(fields, env="Hopper-v5"), capsys)
    assert code == 0
    assert not err
    for fact in (
        "Hopper-v5 (registered)",
        "3 (1 terminated, 1 truncated, 1 unfinished)",
        "mean 4, min 3",
        "11 wide, constant: 4",
        "50.0% of the components at a bound",
        "mean 22, min 6, 10 % 7.8, median 15, 90 % 39, max 45",
        "mean 1.3",
        "D4RL hopper",
    ):
        assert fact in out
    assert out.endswith("can be trained on: yes\n")


def test_the_command_prints_no_traceback_and_no_warning(tmp_path):
    (tmp_path / "page.hdf5").write_text("<html></html>")
    command = [sys.executable, "-m", "unroll", "inspect", str(tmp_path / "page.hdf5")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "web page" in result.stderr


@pytest.mark.parametrize(
    "module", ["sources", "sources.hdf5", "sources.minari_set", "sources.d4rl_set", "episodes", "recording"]
)
def test_datasets_are_read_without_torch_and_without_a_simulator(module):
    heavy = ["torch", "stable_baselines3", "mujoco", "unroll.envs.make"]
    program = f"import sys, unroll.envs.datasets.{module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
