"""train.py, evaluate.py and the recorder on a run of RecurrentPPO."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import obs_as_tensor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from agents import DecisionAgent, scoring
from agents.checkpoint import CheckpointError, latest_checkpoint, read_checkpoint
from agents.evaluation import Episode, play
from agents.players import PPOActor
from agents.ppo_checkpoint import save_ppo
from agents.update import TrainingError
from configs import PPOConfig, load_config, plain_config
from configs.jobs import make_job
from configs.ppo_job import load_ppo, make_ppo, player_of
from envs import collect, load_episodes
from toy import Toy

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


for name, cls, kwargs in (
    ("ToyMasked-v0", Masked, {"discrete": True}),
    ("ToyPicture-v0", Picture, {}),
    ("ToySeveral-v0", Several, {}),
):
    if name not in gym.registry:
        gym.register(name, cls, kwargs=kwargs)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def agent_of(*arguments):
    """An untrained agent that has seen some of its environment, and its config."""
    config = load_config([*TINY, *arguments])
    agent = make_ppo(config, pytest.fail)
    agent.learn(32)
    return agent, config


def saved(agent, config, path="checkpoint"):
    save_ppo(agent, path, plain_config(config))
    return Path(path).absolute()


def test_a_run_leaves_its_config_metrics_checkpoints_events_and_evaluation(tmp_path, capsys):
    arguments = [*MAZE, *NORMALIZED, "--steps", "160", "--checkpoint_every", "50", "--evaluation.every", "70"]
    assert train.main(arguments) == 0
    run = tmp_path / "runs" / "TMaze10-v0" / "mingru" / "seed0"
    printed = capsys.readouterr().out
    for line in ("tensorboard --logdir runs", f"python evaluate.py {run.relative_to(tmp_path)}", "wiped every step"):
        assert line in printed
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000128", "step_00000160"]
    assert load_config(["--config", str(run / "config.yaml")]) == load_config(arguments)

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "time/fps" in line] == [32, 64, 96, 128, 160]
    updates = [line["train/n_updates"] for line in metrics if "train/loss" in line]
    assert updates == [2, 4, 6, 8, 10]  # the last one too
    evaluated = [line for line in metrics if "eval/return_mean" in line]
    assert [line["step"] for line in evaluated] == [96, 160]
    assert {"eval/return_mean_without_memory", "perf/step_latency_us"} <= set(evaluated[-1])

    events = EventAccumulator(str(run))
    events.Reload()
    assert {"rollout/ep_rew_mean", "train/loss", "eval/return_mean_without_memory"} <= set(events.Tags()["scalars"])
    assert "_hparams_/experiment" in events.summary_metadata

    evaluation = json.loads((run / "evaluation.json").read_text())
    (result,) = evaluation["results"]
    assert (evaluation["env"], evaluation["steps"], evaluation["memory"]) == ("TMaze10-v0", 160, "carried")
    assert result["target_return"] is None
    assert len(result["returns"]) == len(evaluation["ablation"]["returns"]) == 3
    assert evaluation["ablation"]["return_mean"] == pytest.approx(np.mean(evaluation["ablation"]["returns"]))


def test_another_process_plays_a_run_again_with_the_same_returns(tmp_path, capsys):
    shown = ["--previous_action", "true", "--previous_reward", "true"]
    assert (
        train.main([*TINY, *NORMALIZED, *shown, "--env", "CartPoleNoVel-v1", "--steps", "64", "--run_dir", "run"]) == 0
    )
    first = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "evaluate.py"), "run", "--output", "again.json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["results"] == first["results"]
    assert again["ablation"] == first["ablation"]
    assert len(set(again["results"][0]["returns"] + again["ablation"]["returns"])) > 1


def test_a_checkpoint_by_itself_is_played_under_its_own_config(tmp_path, capsys):
    agent, config = agent_of("--env", "CartPoleNoVel-v1", "--evaluation.ablation", "false")
    path = saved(agent, config)
    assert evaluate.main([str(path), "--episodes", "2"]) == 0
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert len(evaluation["results"][0]["returns"]) == 2
    assert "ablation" not in evaluation
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--env", "CartPoleNoVel-v1", *NORMALIZED, "--separate_critic", "true", "--schedule", "linear"),
        ("--env", "ToyPicture-v0", *NORMALIZED, "--previous_reward", "true"),
    ],
)
def test_a_checkpoint_holds_weights_optimizer_and_statistics(arguments):
    agent, config = agent_of(*arguments)
    loaded, _ = load_ppo(saved(agent, config), "cpu")
    assert (loaded.num_timesteps, loaded._n_updates) == (32, 2)
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, loaded.policy.state_dict()[name]), name
    slots = [a.policy.optimizer.state_dict()["state"] for a in (agent, loaded)]
    assert all(torch.equal(value, slots[1][i][key]) for i, slot in slots[0].items() for key, value in slot.items())
    ours, theirs = agent.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    pairs = [(ours.ret_rms, theirs.ret_rms)]
    pairs += (
        zip(ours.obs_rms.values(), theirs.obs_rms.values(), strict=True)
        if isinstance(ours.obs_rms, dict)
        else [(ours.obs_rms, theirs.obs_rms)]
    )
    for a, b in pairs:
        assert a.count == b.count > 30
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.var, b.var)


def test_a_sigterm_leaves_a_run_that_goes_on_where_it_was(tmp_path, capsys):
    arguments = [*TINY, *NORMALIZED, "--env", "CartPoleNoVel-v1", "--run_dir", "cut", "--evaluation.every", "0"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--steps", "10000000", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "python train.py --resume true --run_dir cut" in " ".join(output.split())
    _, state = read_checkpoint(latest_checkpoint("cut"))
    stopped = state["num_timesteps"]
    assert f"stopped at step {stopped}" in output

    assert train.main(["--resume", "true", "--run_dir", "cut", "--steps", str(stopped + 64)]) == 0
    assert f"goes on at step {stopped}; every environment begins a new episode" in capsys.readouterr().out
    _, after = read_checkpoint(latest_checkpoint("cut"))
    assert after["num_timesteps"] == stopped + 64
    assert after["n_updates"] == state["n_updates"] + 4
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 0  # nothing is left to do
    assert read_checkpoint(latest_checkpoint("cut"))[1]["num_timesteps"] == stopped + 64
    with pytest.raises(SystemExit):
        train.main(["--resume", "true", "--run_dir", "cut", "--agent", "decision"])
    with pytest.raises(SystemExit):
        train.main(["--resume", "true", "--run_dir", "cut", "--gamma", "0.5"])
    errors = capsys.readouterr().err.strip().splitlines()
    assert ["cannot be changed" in line for line in errors] == [True, True]


def test_statistics_and_masks_reach_the_policy_that_is_played():
    agent, config = agent_of("--env", "ToyMasked-v0", *NORMALIZED)
    player, normalizer = player_of(agent, config, ablation=True), agent.get_vec_normalize_env()
    count, seen = normalizer.obs_rms.count, []
    predict = agent.policy.predict
    agent.policy.predict = lambda observation, *rest: (seen.append((observation, *rest)), predict(observation, *rest))[
        1
    ]
    episode = Episode(seed=3)
    play(player.agent, player.make_env, [episode])  # the environment is broken by an action that it forbids
    assert episode.length == 12
    env = player.make_env()
    raw = env.reset(seed=3)[0]
    np.testing.assert_allclose(seen[0][0], normalizer.normalize_obs(raw)[None])
    np.testing.assert_array_equal(seen[0][4], [[False, True, True]])
    assert normalizer.obs_rms.count == count  # they are frozen
    assert scoring.step_latency(player.agent, env, warm=1, calls=2) > 0


def test_a_memory_that_is_wiped_is_that_of_a_first_step():
    agent, _ = agent_of("--env", "CartPoleNoVel-v1")
    rows = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    state = None
    for _ in range(3):
        _, state = agent.predict(rows, state, None, True)
    _, wiped = PPOActor(agent, forget=True).predict(rows, state, np.zeros(4, bool))
    with torch.no_grad():
        _, _, _, first = agent.policy(obs_as_tensor(rows, agent.device), agent.policy.initial_state(4))
    torch.testing.assert_close(wiped, first)
    assert not torch.equal(wiped[0][0], state[0][0])


def test_a_run_is_recorded_and_the_recording_is_trained_on_and_played(tmp_path, capsys):
    """The policy sees more than the recording holds: it holds what the decision agent will see."""
    arguments = [*TINY, *NORMALIZED, "--env", "ToyBox-v0", "--previous_action", "true", "--log_std_init", "1"]
    assert train.main([*arguments, "--steps", "32", "--run_dir", "run"]) == 0
    played = ["--run", "run", "--episodes", "5", "--seed", "4"]
    for name, options in (("quiet", []), ("noisy", ["--noise", "0.5"]), ("drawn", ["--stochastic"])):
        assert collect.main([*played, *options, "--output", f"{name}.hdf5"]) == 0
    quiet, noisy, drawn = (load_episodes(f"{name}.hdf5") for name in ("quiet", "noisy", "drawn"))
    for episodes in (quiet, noisy, drawn):
        assert episodes.observations.shape == (60, 2)
        assert np.abs(episodes.actions).max() <= 2  # those that were carried out
        np.testing.assert_allclose(episodes.rewards, episodes.actions[:, 0], rtol=1e-6)
    assert np.abs(noisy.actions - quiet.actions).max() > 0.1
    assert (np.abs(drawn.actions) == 2).any()  # drawn further out and clipped
    small = ["--steps", "2", "--context", "4", "--backbone.d_model", "8", "--evaluation.episodes", "2"]
    assert train.main(["--dataset", "quiet.hdf5", *small, "--device", "cpu", "--run_dir", "next"]) == 0
    assert json.loads((tmp_path / "next" / "evaluation.json").read_text())["env"] == "ToyBox-v0"
    capsys.readouterr()


def test_what_a_dataset_cannot_hold_is_one_line(capsys):
    for env_id, expected in (("ToyPicture-v0", "observes 36 × 36 × 1 numbers"), ("ToySeveral-v0", "MultiDiscrete")):
        path = saved(*agent_of("--env", env_id), path=env_id)
        assert collect.main(["--run", str(path), "--episodes", "1", "--output", "x.hdf5"]) == 2
        assert_one_line(capsys, expected)


def test_a_forbidden_action_is_no_noise(capsys):
    path = saved(*agent_of("--env", "ToyMasked-v0"))
    assert collect.main(["--run", str(path), "--episodes", "3", "--noise", "1", "--output", "x.hdf5"]) == 0
    assert len(np.unique(load_episodes("x.hdf5").actions)) == 3
    capsys.readouterr()


def test_options_of_decision_agents_are_one_line(capsys):
    path = str(saved(*agent_of("--env", "TMaze10-v0")))
    for command, arguments in ((evaluate.main, [path]), (collect.main, ["--run", path, "--output", "x.hdf5"])):
        for flag in (["--targets", "3"], ["--memory", "window"]):
            assert command([*arguments, *flag]) == 2
            assert_one_line(capsys, f"{flag[0]} is for decision agents")
    assert evaluate.main([path, "--env", "CartPole-v1"]) == 2
    assert_one_line(capsys, "CartPole-v1 observes 4 numbers, the policy was trained on 2 numbers")


def test_a_checkpoint_that_is_damaged_or_of_another_agent_or_model_is_one_line(capsys):
    agent, config = agent_of("--env", "TMaze10-v0")
    path = saved(agent, config)
    with pytest.raises(CheckpointError, match="not a checkpoint of a DecisionAgent"):
        DecisionAgent.load(path)
    agent.save("zip")
    assert evaluate.main(["zip.zip"]) == 2
    assert_one_line(capsys, "no such run folder")

    for change, expected in (
        ({"net_arch": [9]}, "of another model or version"),
        ({"normalize_reward": True}, "of another model or version"),
        ({"env": "TMaze-v99"}, "TMaze-v99"),
        ({"env": "os:system"}, "without a module"),
        ({"backbone": {"name": "my_own:Mine"}}, "my_own:Mine"),
        ({"gamma": 2}, "gamma"),
        ({"agent": "decision"}, "it is one of agent ppo"),
    ):
        save_ppo(agent, "changed", plain_config(config) | change)
        assert exit_code(evaluate.main, ["changed"]) == 2
        assert_one_line(capsys, expected)

    tensors = path / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    assert evaluate.main([str(path)]) == 2
    assert_one_line(capsys, "tensors.safetensors")


def test_weights_that_are_not_finite_are_not_saved():
    agent, config = agent_of("--env", "TMaze10-v0")
    torch.nn.init.constant_(agent.policy.action_net.bias, torch.nan)
    with pytest.raises(TrainingError, match="a weight is not finite at step 32"):
        saved(agent, config)
    assert not Path("checkpoint").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "TMaze11-v0"], "did you mean TMaze10-v0"),
        (["--batch_size", "17"], "batch_size 17"),
        (["--sequence_length", "5"], "sequence_length 5"),
        (["--use_sde", "true"], "ppo cannot learn in TMaze10-v0"),
        (["--backbone.name", "mingruu"], "did you mean mingru?"),
        (["--backbone.options.dropout", "0.5"], "dropout must be 0 in PPO"),
    ],
)
def test_a_wrong_argument_is_one_line_and_leaves_no_folder(arguments, expected, capsys):
    assert train.main([*MAZE, "--steps", "32", *arguments]) == 2
    assert_one_line(capsys, expected)
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_of_ppo_builds_an_agent_that_can_be_played(path):
    config = load_config(["--config", str(path)])
    assert isinstance(config, PPOConfig)
    if config.env.startswith("popgym-"):
        pytest.importorskip("popgym")
    job = make_job(config, pytest.fail)
    assert job.player().env_id == job.name == config.env


def exit_code(command, arguments):
    try:
        return command(arguments)
    except SystemExit as stopped:
        return stopped.code


def assert_one_line(capsys, expected):
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert expected in error
