"""From ``train.py`` a reader reaches either loss in at most 4 calls of our own code, the recurrence in at most 9."""

import runpy
import sys
import traceback
from pathlib import Path

import pytest

from toy import TINY, toy_episodes
from unroll.agents.decision.agent import DecisionLoss
from unroll.agents.ppo.loss import PPOLoss
from unroll.envs.datasets.recording import write_hdf5
from unroll.policies.backbones.kernels import numba_kernels

ROOT = Path(__file__).parents[1]
DECISION = [*TINY, "--dataset", "toy.hdf5", "--steps", "1", "--evaluation.episodes", "1"]
PPO = ["--agent", "ppo", "--env", "TMaze10-v0", "--n_envs", "2", "--n_steps", "16", "--steps", "32"]


class Seen(Exception):
    """The place was reached."""


def calls(arguments, monkeypatch, owner, name, learning=False):
    """The calls of our own code from train.py to the function ``name`` of ``owner``, which is the last of them."""
    found = []

    def look(*_, **__):
        stack = [Path(frame.filename).resolve() for frame in traceback.extract_stack()[:-1]]
        ours = [path for path in stack if ROOT in path.parents and ROOT / "tests" not in path.parents]
        if not learning or any(path.name in ("agent.py", "loss.py") for path in ours):
            found.append(len(ours) - 1)  # without train.py itself
            raise Seen
        return original(*_, **__)

    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, look)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--threads", "1", "--device", "cpu"])
    with pytest.raises(Seen):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return found[0]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(toy_episodes(10), "toy.hdf5")


@pytest.mark.parametrize(("arguments", "loss"), [(DECISION, DecisionLoss), (PPO, PPOLoss)])
def test_the_loss_is_reached_in_four_calls(arguments, loss, monkeypatch):
    assert calls(arguments, monkeypatch, loss, "forward") + 1 <= 4


@pytest.mark.parametrize("arguments", [DECISION, PPO])
def test_the_recurrence_is_reached_in_nine_calls(arguments, monkeypatch):
    assert calls(arguments, monkeypatch, numba_kernels, "gated_forward", learning=True) <= 9
