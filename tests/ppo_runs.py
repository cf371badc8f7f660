"""Small runs of RecurrentPPO for the tests of commands and checkpoints, and toys that observe and act otherwise."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from toy import Toy
from unroll.agents import schemas
from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.ppo.checkpoint import save_ppo
from unroll.agents.ppo.training import make_ppo
from unroll.commands import train
from unroll.configs import load_config, plain_config

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "ppo").glob("*.yaml"))
SMALL = ["--n_envs", "2", "--n_steps", "16", "--n_epochs", "2", "--backbone.d_model", "8", "--net_arch", "[8]"]
TINY = ["--agent", "ppo", *SMALL, "--evaluation.episodes", "3", "--device", "cpu"]
NORMALIZED = ["--normalize_observation", "true", "--normalize_reward", "true"]
MAZE = [*TINY, "--env", "TMaze10-v0"]


class Masked(Toy):
    """Forbids the action that was done last, and is broken by one that is forbidden."""

    def reset(self, **kwargs):
        self.last = 0
        return super().reset(**kwargs)

    def step(self, action):
        assert action != self.last
        self.last = action
        return super().step(action)

    def action_masks(self):
        return np.arange(3) != self.last


class Picture(Toy):
    """Shows every number of the toy as the brightness of an image."""

    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _observation(self):
        return np.full((36, 36, 1), 5 * self.t, np.uint8)


class Several(Toy):
    """Takes two actions at once."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([3, 2])


class MaskedBits(Toy):
    """Sets three bits, of which the first has to be 0 and the second 1."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.MultiBinary(3)

    def action_masks(self):
        return np.array([1, 0, 0, 1, 1, 1], bool)

    def step(self, action):
        assert action.tolist()[:2] == [0, 1]
        return super().step(action)


for name, cls, kwargs in (
    ("ToyMasked-v0", Masked, {"discrete": True}),
    ("ToyMaskedBits-v0", MaskedBits, {}),
    ("ToyPicture-v0", Picture, {}),
    ("ToySeveral-v0", Several, {}),
):
    if name not in gym.registry:
        gym.register(name, cls, kwargs=kwargs)


def agent_of(*arguments):
    """An untrained agent that has seen some of its environment, and its config."""
    config = load_config([*TINY, *arguments], schemas())
    agent = make_ppo(config, pytest.fail)
    agent.learn(32)
    return agent, config


def saved(agent, config, path="checkpoint"):
    save_ppo(agent, path, plain_config(config))
    return Path(path).absolute()


def finish(folder, *arguments):
    """Train to the end in this process; the last checkpoint's contents."""
    assert train.main([*arguments, "--run_dir", folder, "--threads", "1"]) == 0
    return read_checkpoint(latest_checkpoint(folder))


def assert_same(one, other):
    """Two checkpoints: every tensor and every number, but for clocks."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if not k.startswith(("time/", "perf/")) and k != "t"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    assert one[0].keys() == other[0].keys()
    assert [name for name in one[0] if not torch.equal(one[0][name], other[0][name])] == []
    assert timeless(one[1]) == timeless(other[1])


def metrics(folder):
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/"))} for line in lines]


def exit_code(command, arguments):
    try:
        return command(arguments)
    except SystemExit as stopped:
        return stopped.code


def assert_one_line(capsys, expected):
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert expected in error
