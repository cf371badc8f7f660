"""Evaluations: bounded, of few environments, of none at all, and never a score that is no number."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fault_envs
from fake_runs import DECISION as DECISION_RUN
from fake_runs import fake_run
from ppo_runs import MAZE, NORMALIZED, TINY, agent_of, assert_one_line
from toy import TINY as DECISION
from toy import toy_episodes
from unroll.agents import schemas
from unroll.agents.common.checkpoint import read_checkpoint
from unroll.agents.common.logs import read_metrics
from unroll.agents.evaluation import scoring
from unroll.agents.evaluation.play import Episode, play
from unroll.agents.ppo.lending import Lender
from unroll.agents.ppo.player import PPOActor, ppo_player
from unroll.agents.ppo.training import PPOTraining
from unroll.commands import compare, evaluate, record, train
from unroll.commands.scores import drop_old_score
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import EnvError

RUN = ["--run_dir", "run"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fault_envs.Few.opened = 0
    fault_envs.FewToys.opened = 0


@pytest.fixture
def decision():
    """The arguments of a short run of a decision agent, without the environment."""
    write_hdf5(toy_episodes(10), "toy.hdf5")
    return ["--dataset", "toy.hdf5", *DECISION, "--steps", "4", "--evaluation.episodes", "2", "--device", "cpu", *RUN]


def score(name="evaluation.json"):
    return json.loads(Path("run", name).read_text())


# Without an end


def test_an_episode_without_an_end_is_cut_and_that_is_told(capsys, caplog):
    arguments = [*TINY, "--env", "FaultEndless-v0", "--steps", "32", "--evaluation.max_steps", "50", *RUN]
    assert train.main(arguments) == 0
    told = "6 of 6 episodes of FaultEndless-v0 were cut after 50 steps"
    assert told in " ".join(capsys.readouterr().out.split())
    assert f"{told}; evaluation.max_steps sets where" in caplog.text
    found = score()
    assert found["results"][0]["lengths"] == [50] * 3
    assert (found["results"][0]["cut"], found["ablation"]["cut"], found["max_steps"]) == (3, 3, 50)
    assert evaluate.main(["run", "--max_steps", "20", "--output", "run/again.json"]) == 0
    assert score("again.json")["results"][0]["lengths"] == [20] * 3


def test_a_decision_agents_episode_without_an_end_is_cut_too(decision, capsys):
    more = ["--evaluation.env", "FaultEndlessToy-v0", "--evaluation.targets", "[3]", "--evaluation.max_steps", "30"]
    assert train.main([*decision, *more]) == 0
    assert "2 of 2 episodes of FaultEndlessToy-v0 were cut after 30 steps" in " ".join(capsys.readouterr().out.split())
    assert score()["results"][0]["cut"] == 2


def test_an_episode_that_ends_at_the_last_step_is_not_cut(capsys):
    assert train.main([*TINY, "--env", "FaultSimple-v0", "--steps", "32", "--evaluation.max_steps", "8", *RUN]) == 0
    assert "cut" not in score()["results"][0]
    assert "max_steps" not in score()
    assert "cut" not in capsys.readouterr().out


def test_what_does_not_end_is_not_recorded_and_that_is_told(capsys):
    more = ["--steps", "32", "--evaluation.episodes", "0", "--evaluation.max_steps", "40"]
    assert train.main([*TINY, "--env", "FaultEndless-v0", *more, *RUN]) == 0
    capsys.readouterr()
    assert record.main(["--run", "run", "--episodes", "2", "--output", "x.hdf5"]) == 2
    assert "2 of 2 episodes did not end within 40 steps and are not recorded" in capsys.readouterr().err
    assert record.main(["--run", "run", "--episodes", "1", "--max_steps", "2000", "--output", "x.hdf5"]) == 0


# A score that is no number


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"reward": np.nan}, "the reward is nan in step 3 of the evaluation's episode with seed 1000000, after the"),
        ({"reward": -np.inf}, "the reward is -inf in step 3"),
        ({"observation": np.nan}, "the observation is not finite in step 4 of the evaluation's episode with seed"),
    ],
)
def test_a_score_that_is_not_finite_is_an_error_and_nothing_is_lost(odd, expected, capsys):
    kwargs = json.dumps(odd).replace("NaN", ".nan").replace("-Infinity", "-.inf")
    arguments = [*TINY, "--env", "FaultOdd-v0", "--env_kwargs", kwargs, "--steps", "32", *RUN]
    assert train.main(arguments) == 2
    assert_one_line(capsys, f"FaultOdd-v0: {expected}")
    assert Path("run/checkpoints/step_00000032").is_dir()
    assert not Path("run/evaluation.json").exists()


def test_a_sum_of_rewards_that_is_not_finite_is_an_error(capsys):
    agent, config = agent_of("--env", "FaultSimple-v0")
    player = ppo_player(agent, config, ablation=False)
    make = player.make_env

    def huge(**kwargs):
        env = make(**kwargs)
        step = env.unwrapped.step
        env.unwrapped.step = lambda action: (lambda o, _, *rest: (o, 1.7e308, *rest))(*step(action))
        return env

    player.make_env = huge
    from unroll.agents.evaluation import scoring

    with pytest.raises(EnvError, match="FaultSimple-v0: the return of the episode with seed 5 is inf"):
        scoring.evaluate(player, 2, seed=5)


def test_an_action_that_is_not_finite_is_an_error():
    class Broken:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.full((len(observation["observation"]), 1), np.nan), None

    from unroll.envs.make import make_env
    from unroll.envs.wrappers import ReturnToGo

    with pytest.raises(EnvError, match=r"ToyBox-v0: the agent's action \[nan\] is not finite in step 1 of"):
        play(Broken(), lambda: ReturnToGo(make_env("ToyBox-v0")), [Episode(0, 1.0)])


# Few environments


def test_few_environments_play_what_many_play():
    agent, config = agent_of("--env", "CartPoleNoVel-v1")
    player = ppo_player(agent, config, ablation=False)
    lengths = []
    for n_envs in (1, 3, 100):
        episodes = [Episode(seed) for seed in range(7)]
        play(player.agent, player.make_env, episodes, n_envs)
        lengths.append([episode.length for episode in episodes])
    assert lengths[0] == lengths[1] == lengths[2]


FEW = [*TINY, "--env", "FaultFew-v0", "--n_envs", "1", "--steps", "32", *RUN]


def test_the_first_lines_name_the_arguments_of_the_environment(capsys):
    """Those of the id give way: a T-maze of 10 may be played at another length."""
    maze = [*TINY, "--env", "TMaze10-v0", "--env_kwargs", "{length: 4}", "--steps", "32", "--evaluation.episodes", "0"]
    assert train.main([*maze, *RUN]) == 0
    assert " × TMaze10-v0 with length 4: observes 2 numbers" in capsys.readouterr().out


def test_where_two_can_be_open_one_plays(capsys):
    two = ["--env_kwargs", "{limit: 2}"]
    assert train.main([*FEW, *two]) == 2
    assert_one_line(capsys, "1 of 3 could be open at once for an evaluation, and evaluation.n_envs 1 opens no more")
    assert Path("run/checkpoints/step_00000032").is_dir()
    fault_envs.Few.opened = 0
    assert train.main(["--resume", "true", *RUN, "--evaluation.n_envs", "1"]) == 0
    assert score()["results"][0]["returns"] == [8.0] * 3
    fault_envs.Few.opened = 0
    assert evaluate.main(["run", "--n_envs", "1"]) == 0
    assert fault_envs.Few.opened == 0


def test_where_one_can_be_open_the_error_says_what_to_do(capsys):
    assert train.main(FEW) == 2
    assert_one_line(
        capsys, "--evaluation.reuse_envs true plays in them, and --evaluation.episodes 0 leaves evaluations"
    )
    assert not Path("run").exists()


@pytest.mark.parametrize("vector", ["serial", "processes"])
def test_where_one_can_be_open_it_is_played_in(vector, capsys):
    arguments = [*FEW, "--evaluation.reuse_envs", "true", "--vector", vector, "--steps", "64"]
    assert train.main([*arguments, "--evaluation.every", "16", "--evaluation.video", "true", *NORMALIZED]) == 0
    assert score()["results"][0]["returns"] == [8.0] * 3
    assert "no video: FaultFew-v0: the environments that are learned in" in " ".join(capsys.readouterr().out.split())
    fault_envs.Few.opened = 0
    assert evaluate.main(["run"]) == 0  # in as many as were learned in
    assert fault_envs.Few.opened == 0


def test_a_decision_agent_plays_where_one_can_be_open(decision, capsys):
    arguments = [
        *decision,
        "--evaluation.env",
        "FaultFewToys-v0",
        "--condition",
        "best",
        "--evaluation.targets",
        "[1, 2]",
    ]
    assert train.main([*arguments, "--evaluation.n_envs", "1", "--evaluation.every", "2"]) == 0
    assert [len(result["returns"]) for result in score()["results"]] == [2, 2]
    assert fault_envs.FewToys.opened == 0


@pytest.mark.parametrize("vector", ["serial", "processes"])
@pytest.mark.parametrize("env", ["TMaze10-v0", "CartPoleNoVel-v1"])
def test_learning_goes_on_after_an_evaluation_in_its_own_environments_as_if_there_had_been_none(env, vector, capsys):
    common = [*TINY, *NORMALIZED, "--env", env, "--steps", "128", "--evaluation.every", "32"]
    weights = []
    for name, more in (("own", ["--evaluation.reuse_envs", "false"]), ("lent", ["--evaluation.reuse_envs", "true"])):
        assert train.main([*common, *more, "--vector", vector, "--run_dir", name]) == 0
        weights.append(load_file(f"{name}/checkpoints/step_00000128/tensors.safetensors"))
    ours, theirs = (json.loads(Path(name, "evaluation.json").read_text()) for name in ("own", "lent"))
    assert ours["results"][0]["returns"] == theirs["results"][0]["returns"]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    capsys.readouterr()


def test_environments_that_cannot_be_saved_begin_anew_with_seeds_of_their_own():
    agent, _ = agent_of("--env", "FaultSimple-v0")
    lender = Lender(agent, "FaultSimple-v0")
    env = lender.make_env()
    with lender.lending():
        first = env.reset(seed=1_000_000)[0]
        env.step(0)
        env.close()
    assert agent._last_episode_starts.tolist() == [True, True]
    assert not np.array_equal(agent._last_obs[0], first)
    assert agent.env.envs[0].unwrapped.t == 0
    agent.learn(32, reset_num_timesteps=False)


def test_a_signal_leaves_an_evaluation_in_lent_environments_between_two_steps(capsys):
    """In processes an answer that nobody has read would be read as that to the next question."""
    arguments = [*TINY, "--env", "TMaze10-v0", "--vector", "processes", "--steps", "96", "--evaluation.every", "32"]
    reuse = ["--evaluation.reuse_envs", "true"]
    assert train.main([*arguments, "--run_dir", "whole"]) == 0
    steps = []

    def interrupt(lender, method):
        def step(*args, **kwargs):
            steps.append(0)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGTERM)
            return method(lender, *args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as patch:
        from unroll.agents.ppo.lending import LentEnv

        call = LentEnv._call
        patch.setattr(LentEnv, "_call", lambda env, *args, **kwargs: interrupt(env, call)(*args, **kwargs))
        assert train.main([*arguments, *reuse, "--run_dir", "cut"]) == 128 + signal.SIGTERM
    assert train.main(["--resume", "true", "--run_dir", "cut"]) == 0
    ours, theirs = (load_file(f"{name}/checkpoints/step_00000096/tensors.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    capsys.readouterr()


# Another evaluation than before


def test_a_finished_run_is_scored_again_where_its_evaluation_is_another(decision, monkeypatch, capsys):
    assert train.main(decision) == 0
    resume = ["--resume", "true", *RUN]

    # Ctrl-C before the new score leaves none that could be taken for it.
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unroll.agents.evaluation.scoring.evaluate", interrupted)
        assert train.main([*resume, "--evaluation.episodes", "3", "--evaluation.seed", "9"]) == 130
    assert train.main(resume) == 0
    assert score()["seeds"] == [9, 10, 11]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (["--evaluation.n_envs", "1", "--evaluation.every", "7", "--evaluation.video", "true"], True),
        (["--evaluation.episodes", "0"], True),
        (["--evaluation.episodes", "3"], False),
        (["--evaluation.max_steps", "2"], False),
        (["--evaluation.memory", "window"], False),
    ],
)
def test_a_score_is_dropped_where_another_one_is_asked_for(change, stays, tmp_path):
    run = fake_run(tmp_path / "run", "gru", 0, 5.0, DECISION_RUN)
    drop_old_score(load_config([*DECISION_RUN, "--backbone.name", "gru", *change], schemas()), run, learns_on=False)
    assert (run / "evaluation.json").exists() == stays


def test_a_finished_run_shows_no_score_of_evaluate_with_other_options(decision, capsys):
    assert train.main(decision) == 0
    own = score()
    for flags in (["--episodes", "1", "--seed", "7"], ["--memory", "window"]):
        assert evaluate.main(["run", *flags]) == 0
        capsys.readouterr()
        assert train.main(["--resume", "true", *RUN]) == 0
        assert "ToyBox-v0: 2 episodes" in capsys.readouterr().out
        assert (score()["results"], score()["memory"]) == (own["results"], "carried")


def test_a_score_is_the_runs_own_if_it_is_of_the_same_episodes_played_in_the_same_way():
    agent, config = agent_of("--env", "TMaze10-v0")
    player = ppo_player(agent, config, False).as_told(config.evaluation)
    own = scoring.evaluate(player)
    assert scoring.is_played_so(own, player)
    (result,) = own["results"]
    for change in (
        {"seeds": [7, 8, 9]},
        {"seeds": own["seeds"][:2]},
        {"env": "TMaze-v0"},
        {"env_kwargs": {"length": 3}},
        {"memory": "window"},
        {"actions": scoring.SAMPLED},
        {"max_steps": 50},
        {"ablation": result},
        {"results": [result | {"target_return": 3.0}]},
        {"results": [result, result]},
    ):
        assert not scoring.is_played_so(own | change, player), change
    player.max_steps = max(result["lengths"]) - 1  # an episode would be cut now
    assert not scoring.is_played_so(own, player)


def test_the_best_checkpoint_is_not_chosen_by_scores_of_another_evaluation(monkeypatch, capsys):
    returns = iter([5.0, 3.0, 1.0, 2.0, 1.5, 9.0])
    monkeypatch.setattr(scoring, "headline", lambda _: {"eval/return_mean": next(returns)})
    best, old = (Path("run/checkpoints", name) for name in ("best", "best_until_00000064"))
    resume = ["--resume", "true", *RUN]
    assert train.main([*MAZE, "--steps", "64", "--evaluation.every", "32", *RUN]) == 0
    assert "otherwise" not in capsys.readouterr().out

    # The scores of these steps are lower, and of another evaluation.
    assert train.main([*resume, "--steps", "128", "--evaluation.seed", "7"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the run is evaluated otherwise than before" in told
    assert "checkpoints/best stays as it is until there is a new best, and as run/checkpoints/best_until_" in told
    assert read_checkpoint(old)[1]["num_timesteps"] == 32
    assert read_checkpoint(best)[1]["num_timesteps"] == 128

    # From here on it is the same evaluation again.
    assert train.main([*resume, "--steps", "160"]) == 0
    assert read_checkpoint(best)[1]["num_timesteps"] == 128
    assert train.main([*resume, "--steps", "192", "--evaluation.ablation", "false"]) == 0
    assert read_checkpoint(best)[1]["num_timesteps"] == 192
    assert read_checkpoint(old)[1]["num_timesteps"] == 32
    assert "otherwise" not in capsys.readouterr().out


def test_a_finished_run_that_is_scored_anew_keeps_its_best_checkpoint_and_one_score_of_a_step(capsys):
    assert train.main([*MAZE, "--steps", "64", "--evaluation.every", "32", *RUN]) == 0
    logged = Path("run/metrics.jsonl").read_text()
    best = Path("run/checkpoints/best").stat().st_ino
    resume = ["--resume", "true", *RUN]
    Path("run/evaluation.json").unlink()
    assert train.main(resume) == 0
    assert Path("run/metrics.jsonl").read_text() == logged
    assert train.main([*resume, "--evaluation.seed", "7"]) == 0
    assert score()["seeds"] == [7, 8, 9]
    assert [line["step"] for line in read_metrics(Path("run")) if "eval/return_mean" in line] == [32, 64]
    events = EventAccumulator("run")
    events.Reload()
    assert [event.step for event in events.Scalars("eval/return_mean")] == [32, 64]
    assert Path("run/checkpoints/best").stat().st_ino == best
    capsys.readouterr()


def test_a_film_of_an_older_checkpoint_or_of_another_evaluation_does_not_stay(capsys):
    assert train.main([*MAZE, "--steps", "32", *RUN]) == 0
    film = Path("run/evaluation.gif")
    for change, stays in ((["--keep", "3"], True), (["--evaluation.seed", "7"], False), (["--steps", "64"], False)):
        film.write_bytes(b"GIF89a")
        assert train.main(["--resume", "true", *RUN, *change]) == 0
        assert film.exists() == stays
    capsys.readouterr()


def test_a_resume_that_is_refused_drops_no_score(monkeypatch, capsys):
    assert train.main([*MAZE, "--steps", "64", "--evaluation.episodes", "1", *RUN]) == 0
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = ["--resume", "true", *RUN, "--steps", "96", "--evaluation.episodes", "2", "--track", "wandb"]
    capsys.readouterr()
    assert train.main(other) == 2
    assert_one_line(capsys, "unroll-rl[wandb]")
    assert Path("run/evaluation.json").is_file()


def test_a_policy_without_a_distribution_draws_nothing(decision, capsys):
    assert train.main([*decision, "--action_modes", "0"]) == 0
    capsys.readouterr()
    assert evaluate.main(["run", "--stochastic"]) == 2
    assert_one_line(capsys, "nothing can be drawn")
    assert record.main(["--run", "run", "--episodes", "1", "--stochastic", "--output", "a.hdf5"]) == 2
    assert_one_line(capsys, "nothing can be drawn")


def test_the_noise_of_gsde_is_drawn_for_each_episode():
    agent, _ = agent_of("--env", "ToyBox-v0", "--use_sde", "true")
    actor = PPOActor(agent)
    shown = np.ones((3, 2), np.float32)
    begin, go_on = np.ones(3, bool), np.zeros(3, bool)
    first, state = actor.predict(shown, None, begin, deterministic=False)
    assert len(np.unique(first)) == 3
    again, _ = actor.predict(shown, None, begin, deterministic=False)
    assert (again != first).all()
    drawn = agent.policy.action_dist.exploration_matrices
    actor.predict(shown, state, go_on, deterministic=False)
    assert agent.policy.action_dist.exploration_matrices is drawn


def test_statistics_do_not_widen_an_observation():
    agent, _ = agent_of("--env", "CartPoleNoVel-v1", *NORMALIZED)
    agent.act_unnormalized()
    agent.predict(np.zeros((3, 2)))
    for wrong in (np.zeros((3, 1)), np.zeros(1), np.float32(0)):
        with pytest.raises(ValueError, match="Unexpected observation shape"):
            agent.predict(wrong)


# No evaluation


def test_training_without_any_evaluation(decision, capsys):
    none = ["--evaluation.episodes", "0", "--evaluation.every", "2"]
    assert train.main([*decision, "--evaluation.env", "FaultRaisingToy-v0", *none]) == 0
    assert train.main([*MAZE, "--steps", "64", *none, "--run_dir", "ppo"]) == 0
    capsys.readouterr()
    for run in ("run", "ppo"):
        assert not Path(run, "evaluation.json").exists()
        assert "eval/" not in Path(run, "metrics.jsonl").read_text()
        assert compare.main(["--from", run]) == 2
        assert_one_line(capsys, f"{run}: was trained with evaluation.episodes 0 and has no score")
        assert evaluate.main([run]) == 2
        assert_one_line(capsys, f"{run} was trained with evaluation.episodes 0")
    assert train.main(["--resume", "true", "--run_dir", "ppo", "--steps", "96"]) == 0
    assert evaluate.main(["ppo", "--episodes", "1"]) == 0
    assert compare.main(["--from", "ppo"]) == 0
    capsys.readouterr()


def test_a_dataset_whose_environment_cannot_be_played_in_is_trained_on_without_evaluation(decision, capsys):
    assert train.main([*decision, "--evaluation.env", "FaultMissing-v0"]) == 2
    assert_one_line(capsys, "FaultMissing-v0")
    assert train.main([*decision, "--evaluation.env", "FaultMissing-v0", "--evaluation.episodes", "0"]) == 0
    capsys.readouterr()


def test_a_comparison_without_evaluation_is_refused(capsys):
    arguments = ["--config", "ppo/tmaze", "--backbones", "gru", "--evaluation.episodes", "0"]
    assert compare.main(arguments) == 2
    assert_one_line(capsys, "tmaze: with evaluation.episodes 0 a run has no score to compare")


def test_no_environment_is_opened_where_nothing_is_played(monkeypatch):
    from unroll.agents import schemas
    from unroll.configs import load_config

    monkeypatch.setattr("unroll.agents.ppo.player.make_env", lambda *_, **__: pytest.fail("opened"))
    config = load_config([*MAZE, "--evaluation.episodes", "0"], schemas())
    assert PPOTraining(config, pytest.fail).player() is None
