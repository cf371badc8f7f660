"""A decision agent that observes images, alone and in a Dict: it learns, acts, goes on and is exported."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from image_envs import LENGTH, SPACES, name_of, record
from toy import TINY, make_agent, replay, whole_episode
from unroll.agents import DecisionAgent
from unroll.agents.decision.player import decision_player
from unroll.agents.evaluation.play import Episode, play
from unroll.commands import evaluate, export, train
from unroll.commands import record as record_command
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.make import make_env, make_vec_env
from unroll.errors import CheckpointError, DatasetError, EnvError
from unroll.export.play import play as play_exported
from unroll.export.runner import Policy
from unroll.policies.images import GridExtractor, GridsCombinedExtractor, PartsExtractor

KINDS = list(SPACES)
FAST = [*TINY, "--evaluation.episodes", "2", "--evaluation.every", "0", "--device", "cpu", "--warmup_steps", "2"]


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


@pytest.mark.parametrize("name", ["observations", "final_observations"])
@pytest.mark.parametrize("as_given", [lambda rows: rows / np.float32(255), lambda rows: rows.astype(np.int64)])
def test_pictures_of_ones_own_are_bytes(name, as_given):
    """Others were divided by 255 once more, and what was learned from was nearly black."""
    episodes = record("image")
    wrong = dataclasses.replace(episodes, **{name: as_given(getattr(episodes, name))})
    message = rf"^.*: {name} is of (float32|int64); with parts it is bytes \(uint8\), a pixel from 0 to 255$"
    with pytest.raises(DatasetError, match=message):
        make_agent(wrong)
    with pytest.raises(DatasetError, match=message):
        make_agent(episodes).set_episodes(wrong)


@pytest.mark.parametrize("tokens", ["fused", "interleaved"])
@pytest.mark.parametrize("backbone", ["mingru", "lstm", "transformer", "mamba"])
def test_acting_is_training(backbone, tokens):
    episodes = record("dict")
    agent = make_agent(episodes, context=LENGTH, backbone=backbone, tokens=tokens).learn(3)
    agent.policy.eval()
    agent.policy.action.choose = lambda prediction, deterministic: prediction  # not the action alone
    with torch.no_grad():
        expected = agent.policy(whole_episode(episodes, 2))[0].numpy()
    for memory in ("carried", "window"):
        agent.policy.memory = memory
        for copies in (1, 2):  # a batch of one row is laid out in another way
            np.testing.assert_allclose(replay(agent, episodes, 2, copies), expected.repeat(copies, 0), atol=2e-5)


@pytest.mark.parametrize("kind", ["image", "grid"])
def test_acting_in_the_environment_is_what_training_gives_for_what_was_recorded_there(kind):
    agent = make_agent(record(kind), context=LENGTH).learn(2)
    player = decision_player(agent, name_of(kind), None, "carried")
    env = player.make_env()
    observation, _ = env.reset(seed=3)
    rows, state = [], None
    for t in range(LENGTH):
        shown = {key: np.asarray(value)[None] for key, value in observation.items()}
        assert shown["observation"].dtype == np.uint8
        action, state = agent.predict(shown, state, np.array([t == 0]))
        rows.append((shown, action))
        observation = env.step(action[0])[0]
    inputs = {}
    for key in rows[0][0]:
        values = torch.as_tensor(np.stack([shown[key] for shown, _ in rows], 1))
        inputs[key] = values.squeeze(-1) if key in ("return_to_go", "timestep") else values
    with torch.no_grad():
        prediction, _ = agent.policy(inputs)
    np.testing.assert_array_equal(prediction.argmax(-1)[0].numpy(), np.concatenate([action for _, action in rows]))


def test_every_part_of_an_observation_is_seen():
    episodes = record("dict")
    agent = make_agent(episodes)
    agent.policy.eval()
    assert type(agent.policy.images.extractor) is GridsCombinedExtractor
    assert type(make_agent(record("grid")).policy.images.extractor) is GridExtractor
    steps = whole_episode(episodes, 0)
    with torch.no_grad():
        before = agent.policy.tokens(steps)
        for column in (0, 9, 25, 37):  # a pixel of `a`, a number of `speed` and of `turn`, a pixel of `view`
            other = dict(steps, observation=steps["observation"].clone())
            other["observation"][..., column] ^= 64
            assert (agent.policy.tokens(other) != before).any(), column


def test_what_is_in_a_row_is_found_whatever_stands_before_it():
    parts = {"a": (1, 1, 3), "b": (2,), "c": (2, 2, 1)}
    row = torch.cat([torch.tensor([1, 2, 3]), torch.tensor([0.5, -2.0]).view(torch.uint8), torch.arange(4)]).byte()
    for rows in (row, row[None], row.expand(3, 2, -1)):
        shown = PartsExtractor(parts).split(rows)
        assert shown["a"].shape[-3:] == (1, 1, 3)
        assert shown["b"].reshape(-1, 2)[-1].tolist() == [0.5, -2.0]
        assert shown["c"].reshape(-1, 4)[-1].tolist() == [0, 1, 2, 3]


def test_a_run_that_goes_on_ends_with_the_same_weights_bit_for_bit(tmp_path):
    episodes = record("dict")
    whole = make_agent(episodes).learn(6)
    first = make_agent(episodes)
    first.learn(6, lambda local, _: local["self"].num_timesteps < 3)
    first.save(tmp_path / "half")
    second = DecisionAgent.load(tmp_path / "half", device="cpu", episodes=episodes)
    second.learn(3, reset_num_timesteps=False)
    assert torch.equal(weights(whole), weights(second))


@pytest.mark.parametrize("kind", ["dict", "image"])
def test_from_the_recorder_to_an_exported_policy(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = name_of(kind)
    learner = ["--algorithm", "a2c", "--steps", "80", "--output", "pictures.hdf5"]
    assert record_command.main([*learner, "--env", env]) == 0
    assert train.main(["--dataset", "pictures.hdf5", *FAST, "--steps", "4", "--run_dir", "run"]) == 0
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "6"]) == 0
    assert "goes on at update 4" in capsys.readouterr().out
    assert evaluate.main(["run", "--episodes", "3", "--seed", "5"]) == 0
    played = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"][0]["returns"]

    # The exported policy sees the environment itself, and gets the same returns.
    assert export.main(["run", "--format", "pt2"]) == 0
    policy = Policy(tmp_path / "run" / "pt2")
    again = []
    for seed in (5, 6, 7):
        again.append(play_exported(policy, make_env(env, images=True), seed=seed))
    assert again == played

    # A trained run is recorded as well.
    assert record_command.main(["--run", "run", "--episodes", "2", "--output", "again.hdf5"]) == 0
    capsys.readouterr()


def test_ppo_is_recorded_where_it_sees_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = name_of("dict")
    flags = ["--agent", "ppo", "--env", env, "--steps", "64", "--n_envs", "2", "--n_steps", "16", "--run_dir", "ppo"]
    flags += ["--previous_action", "true", "--evaluation.episodes", "0", "--device", "cpu", "--batch_size", "32"]
    assert train.main(flags) == 0
    assert record_command.main(["--run", "ppo", "--episodes", "3", "--output", "ppo.hdf5"]) == 0
    agent = make_agent(load_episodes("ppo.hdf5"))
    assert list(agent.policy.images.parts) == ["a", "speed", "turn", "view"]  # without what PPO sees beside them


def test_other_images_than_those_of_the_environment_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hdf5(record("grid"), "grid.hdf5")
    flags = ["--dataset", "grid.hdf5", *FAST, "--steps", "1", "--evaluation.env"]
    assert train.main([*flags, name_of("image")]) == 2
    wanted = "Pictures-image-v0 observes images of 36 × 37 × 3 bytes, the policy was trained on images of 5 × 4 × 3"
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert wanted in line
    assert train.main([*flags, "CartPole-v1"]) == 2
    assert "CartPole-v1 observes 4 numbers, the policy was trained on images of" in capsys.readouterr().err


def test_an_agent_refuses_other_images_and_goes_on_with_the_rows_that_it_knows(tmp_path):
    grid = record("grid")
    make_agent(grid).save(tmp_path / "grid")
    with pytest.raises(DatasetError, match=r"an observation is images of 36 × 37 × 3 bytes, the agent was trained on"):
        DecisionAgent.load(tmp_path / "grid", device="cpu", episodes=record("image"))

    # An agent of an older version has learned from the same file as from rows of numbers.
    flat = make_agent(grid.without_images()).learn(1)
    flat.save(tmp_path / "flat")
    assert DecisionAgent.load(tmp_path / "flat", device="cpu", episodes=grid).learn(1).num_timesteps == 1
    with pytest.raises(EnvError, match="observes"):
        decision_player(flat, "CartPole-v1", None, "carried")
    play(flat, decision_player(flat, name_of("grid"), None, "carried").make_env, [Episode(0)])


def test_a_damaged_description_of_images_is_a_damaged_checkpoint(tmp_path, monkeypatch):
    agent = make_agent(record("grid"))
    for parts in ({"": [5, 4]}, {"": [5, 4, 4]}, {"": [1 << 20, 5, 3]}, [5, 4, 3]):
        agent.policy.config["parts"] = parts
        agent.save(tmp_path / "wrong")
        with pytest.raises(CheckpointError, match="of another model or version"):
            DecisionAgent.load(tmp_path / "wrong", device="cpu")


def test_the_evaluation_of_stable_baselines3_shows_the_rows():
    agent = make_agent(record("dict"))
    env = make_vec_env(name_of("dict"), 2, target_return=float("inf"), images=True)
    mean, _ = evaluate_policy(agent, env, n_eval_episodes=2)
    assert 0 <= mean <= LENGTH


def test_images_are_learned_from(tmp_path):
    """The action is read off a pixel of the grid: nothing else tells it."""
    episodes = record("grid", n=30)
    rows = episodes.observations.copy()
    rows[:, 0] = episodes.actions * 5
    agent = make_agent(dataclasses.replace(episodes, observations=rows), learning_rate=3e-3, top_fraction=1.0)
    agent.learn(120)
    assert agent.last_metrics["train/loss"] < 0.6
