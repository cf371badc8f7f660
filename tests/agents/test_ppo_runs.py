"""Checkpoints, players, recordings and configs of RecurrentPPO's runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import obs_as_tensor

import unroll
from ppo_runs import FILES, NORMALIZED, TINY, agent_of, assert_one_line, exit_code, saved
from unroll.agents import AGENTS, DecisionAgent, RecurrentPPO, schemas
from unroll.agents.evaluation import scoring
from unroll.agents.evaluation.play import Episode, play
from unroll.agents.ppo.checkpoint import save_ppo
from unroll.agents.ppo.config import PPOConfig
from unroll.agents.ppo.player import PPOActor, ppo_player
from unroll.agents.ppo.training import load_ppo, make_ppo
from unroll.commands import evaluate, train
from unroll.commands import record as collect
from unroll.configs import load_config, plain_config
from unroll.envs import load_episodes
from unroll.errors import CheckpointError, TrainingError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
        ("--env", "CartPoleNoVel-v1", *NORMALIZED, "--separate_critic", "false", "--schedule", "linear"),
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


def test_statistics_and_masks_reach_the_policy_that_is_played():
    agent, config = agent_of("--env", "ToyMasked-v0", *NORMALIZED)
    player, normalizer = ppo_player(agent, config, ablation=True), agent.get_vec_normalize_env()
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
    (wiped_inputs, _), (inputs, _) = wiped[0][0], state[0][0]
    assert not torch.equal(wiped_inputs[:, :-1], inputs[:, :-1])  # of the convolution, all but the last


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
    path = saved(*agent_of("--env", "ToySeveral-v0"))
    assert collect.main(["--run", str(path), "--episodes", "1", "--output", "x.hdf5"]) == 2
    assert_one_line(capsys, "MultiDiscrete")


def test_a_run_that_sees_images_is_recorded_in_images(capsys):
    path = saved(*agent_of("--env", "ToyPicture-v0"))
    assert collect.main(["--run", str(path), "--episodes", "1", "--output", "x.hdf5"]) == 0
    episodes = load_episodes("x.hdf5")
    assert episodes.parts == {"": (36, 36, 1)}
    assert episodes.observations.dtype == np.uint8
    np.testing.assert_array_equal(episodes.observations[:, 0], 5 * np.arange(len(episodes.observations)))
    capsys.readouterr()


def test_a_forbidden_action_is_no_noise(capsys):
    path = saved(*agent_of("--env", "ToyMasked-v0"))
    assert collect.main(["--run", str(path), "--episodes", "3", "--noise", "1", "--output", "x.hdf5"]) == 0
    assert len(np.unique(load_episodes("x.hdf5").actions)) == 3
    capsys.readouterr()


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
        ({"env": "os:system"}, "os registers no system"),
        ({"backbone": {"name": "my_own:Mine"}}, "my_own:Mine"),
        ({"gamma": 2}, "gamma"),
        ({"agent": "decision"}, "agent 'decision': expected one of ppo"),
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_of_ppo_builds_an_agent_that_can_be_played(path):
    config = load_config(["--config", str(path)], schemas())
    assert isinstance(config, PPOConfig)
    for beginning, package in (("popgym-", "popgym"), ("MiniGrid-", "minigrid")):
        if config.env.startswith(beginning):
            pytest.importorskip(package, reason=f"the extra {package} is not installed")
    job = AGENTS[config.agent].training(config, pytest.fail)
    assert job.player().env_id == job.name == config.env


def test_an_agent_is_loaded_from_a_run_by_its_class_and_by_unroll_load():
    agent, config = agent_of("--env", "TMaze10-v0")
    folder = saved(agent, config, "run/checkpoints/step_00000032").parents[1]
    observation = agent.env.reset()
    expected, _ = agent.predict(observation, deterministic=True)
    for loaded in (RecurrentPPO.load(folder), unroll.load(folder), unroll.load(folder / "checkpoints/step_00000032")):
        assert isinstance(loaded, RecurrentPPO)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert RecurrentPPO.load(folder, env=agent.env).env is agent.env


def test_a_large_seed_is_another_one_than_what_its_last_bits_say():
    weights = []
    for seed in (0, 2**31, 2**32):
        config = load_config([*TINY, "--env", "CartPole-v1", "--seed", str(seed)], schemas())
        agent = make_ppo(config, pytest.fail)
        weights.append(torch.nn.utils.parameters_to_vector(agent.policy.parameters()))
    assert not any(torch.equal(weights[i], weights[i - 1]) for i in range(3))


def test_a_zip_of_an_earlier_version_is_one_line(monkeypatch):
    agent, _ = agent_of("--env", "TMaze10-v0")
    agent.save("old.zip")

    def gone(*_, **__):
        raise ModuleNotFoundError("No module named 'policies'")

    monkeypatch.setattr("stable_baselines3.common.save_util.cloudpickle.loads", gone)
    with pytest.raises(CheckpointError, match=r"old\.zip: of another version, or of another program"):
        RecurrentPPO.load("old.zip")
