"""What Python code gives an agent is what is meant, or it is refused in one line before anything is learned."""

import dataclasses
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import LogEveryNTimesteps
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from toy import LENGTH, make_agent, toy_episodes
from unroll.agents import DecisionAgent, RecurrentPPO
from unroll.agents.decision.config import DecisionConfig
from unroll.agents.decision.player import decision_player, show
from unroll.agents.evaluation.play import Episode, play
from unroll.agents.evaluation.scoring import evaluate
from unroll.commands import train
from unroll.envs import Episodes
from unroll.envs.datasets import doctor
from unroll.envs.make import make_env, make_vec_env
from unroll.errors import BackboneError, DatasetError, EnvError, HyperparameterError
from unroll.policies.decision import DecisionPolicy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"condition": "returns"}, r"condition is one of best, return, none, not 'returns' \(did you mean return\?\)"),
        ({"tokens": "x"}, "tokens is one of fused, interleaved, not 'x'"),
        ({"memory": "x"}, "memory is one of carried, window, not 'x'"),
        ({"dropout": -0.5}, "dropout must be at least 0 and less than 1, not -0.5"),
    ],
)
def test_a_word_that_the_policy_does_not_know_makes_no_other_policy(wrong, message):
    with pytest.raises(BackboneError, match=f"^{message}$"):
        DecisionPolicy(3, gym.spaces.Discrete(2), d_model=8, **wrong)


# What is given, and what is meant.
NUMBERS = [
    ("batch_size", np.int64(8), 8),
    ("batch_size", 8.0, 8),
    ("context", np.int64(5), 5),
    ("warmup_steps", 1e2, 100),
    ("learning_rate", np.float32(0.5), 0.5),
    ("learning_rate", 1, 1.0),
    ("top_fraction", np.float32(0.5), 0.5),
    ("weight_decay", None, None),
    ("timestep_embedding", 1, True),
    ("timestep_embedding", np.bool_(True), True),
    ("seed", np.int64(3), 3),
]
OF_THE_POLICY = [
    ("previous_action", 1, True),
    ("d_model", np.int64(8), 8),
    ("n_layers", 1.0, 1),
    ("dropout", 0, 0.0),
    ("action_modes", np.int64(2), 2),
    ("backbone_options", {"conv": np.int64(2)}, {"conv": 2}),
]


@pytest.mark.parametrize(("name", "given", "meant"), NUMBERS + OF_THE_POLICY)
def test_whatever_number_an_agent_takes_it_can_save_and_load(tmp_path, name, given, meant):
    policy = {"d_model": 8, "n_layers": 1}
    hyperparameters = {"batch_size": 8, "device": "cpu"}
    if (name, given, meant) in OF_THE_POLICY:
        policy[name] = given
    else:
        hyperparameters[name] = given
    agent = DecisionAgent(toy_episodes(8), policy_kwargs=policy, **hyperparameters).learn(2)
    agent.save(tmp_path / "run")
    loaded = DecisionAgent.load(tmp_path / "run", device="cpu")
    found = {**loaded.policy.config, **vars(loaded.hyperparameters)}[name]
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize("total", [1e1, np.int64(10), np.float32(10), 10])
def test_a_number_of_updates_may_be_a_float_or_one_of_numpy(tmp_path, total):
    make_agent(toy_episodes(8)).learn(total).save(tmp_path / "run")
    assert DecisionAgent.load(tmp_path / "run", device="cpu").num_timesteps == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_grad_norm": float("inf")}, "max_grad_norm is a finite float, not inf"),
        ({"max_grad_norm": None}, "max_grad_norm is a finite float, not None"),
        ({"max_grad_norm": 0}, "max_grad_norm: 0 does not conform to restriction v>0"),
        ({"learning_rate": "1e-3"}, "learning_rate is a finite float, not '1e-3'"),
        ({"seed": -1}, "seed: -1 does not conform to restriction v>=0 and .*"),
        ({"context": 2.5}, "context is an int, not 2.5"),
        ({"context": True}, "context is an int, not True"),
        ({"timestep_embedding": 2}, "timestep_embedding is a bool, not 2"),
        ({"backbone": 3}, "backbone is a str, not 3"),
        ({"condition": "returns"}, "condition is one of best, return, none, not 'returns'"),
    ],
)
def test_a_number_that_could_not_be_loaded_is_refused_where_the_agent_is_made(wrong, message):
    with pytest.raises(HyperparameterError, match=f"^{message}$"):
        make_agent(toy_episodes(2), **wrong)


@pytest.mark.parametrize("total", [2.5, -1, float("nan"), "10"])
def test_what_is_no_number_of_updates_is_refused_before_anything_is_learned(total):
    agent = make_agent(toy_episodes(2)).learn(1)
    with pytest.raises(HyperparameterError, match="total_timesteps"):
        agent.learn(total)
    assert agent.num_timesteps == 1


@pytest.mark.parametrize("log_interval", [0, -1, 2.5, "10"])
def test_what_is_no_number_of_updates_between_two_lines_of_the_log_is_refused(log_interval):
    with pytest.raises(HyperparameterError, match=r"^log_interval"):
        make_agent(toy_episodes(2)).learn(1, log_interval=log_interval)


def test_without_a_log_interval_callbacks_log_and_the_end(tmp_path):
    logged = []
    for interval, callback in ((None, None), (None, LogEveryNTimesteps(2)), (2, None)):
        agent = make_agent(toy_episodes(2), env=make_vec_env("ToyBox-v0", target_return=0.0))
        agent.set_logger(configure(str(tmp_path), ["csv"]))
        agent.learn(5, callback, log_interval=interval)
        agent.logger.close()
        rows = (tmp_path / "progress.csv").read_text().splitlines()
        loss = rows[0].split(",").index("train/loss")
        logged.append([row.split(",")[loss] for row in rows[1:]])
    assert [len(losses) for losses in logged] == [1, 3, 3]
    assert logged[1] == logged[2]


def test_a_config_settles_its_own_fields_as_well():
    config = DecisionConfig(steps=1e3, batch_size=np.int64(4), dropout=0)
    assert [type(value) for value in (config.steps, config.batch_size, config.dropout)] == [int, int, float]


def test_the_command_refuses_an_infinity_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--max_grad_norm", "inf"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "unroll train: max_grad_norm is a finite float, not inf; see --help\n"


def test_ppo_takes_numbers_of_numpy_and_whole_floats(tmp_path):
    agent = RecurrentPPO(
        "MlpPolicy",
        gym.make("ToyBox-v0"),
        learning_rate=np.float32(1e-3),
        clip_range=np.float32(0.2),
        clip_range_vf=np.float32(0.2),
        n_steps=32.0,
        batch_size=np.int64(16),
        sequence_length=np.int64(8),
        seed=np.int64(3),
        policy_kwargs=dict(d_model=np.int64(8), n_layers=1),
        device="cpu",
    )
    agent.learn(np.int64(64)).save(tmp_path / "agent")
    assert RecurrentPPO.load(tmp_path / "agent", device="cpu").num_timesteps == 64


class Kept(gym.Env):
    """Keeps what it is given."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    given: ClassVar[list] = []

    def __init__(self, shape=(2,), dtype="float32"):
        self.action_space = gym.spaces.Box(0, 5, shape, np.dtype(dtype).type)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.given.append(action)
        return np.zeros(3, np.float32), 1.0, False, False, {}


KEPT = {"Whole": dict(dtype="int64"), "Matrix": dict(shape=(2, 2)), "Scalar": dict(shape=())}
for name, kwargs in KEPT.items():
    if f"UnrollKept{name}-v0" not in gym.registry:
        gym.register(f"UnrollKept{name}-v0", Kept, max_episode_steps=4, kwargs=kwargs)


@pytest.mark.parametrize("kind", KEPT)
def test_python_plays_an_agent_as_the_commands_do(kind, monkeypatch):
    env_id = f"UnrollKept{kind}-v0"
    space = make_env(env_id).action_space
    width = int(np.prod(space.shape))
    episodes = Episodes(
        observations=np.zeros((4, 3), np.float32),
        actions=np.linspace(0, 5, 4 * width, dtype=np.float32).reshape(4, width),
        rewards=np.ones(4, np.float32),
        lengths=np.array([4]),
        terminated=np.array([True]),
        truncated=np.array([False]),
        action_space=gym.spaces.Box(0, 5, (width,), np.float32),
        name="kept",
    )
    agent = make_agent(episodes)

    played = []
    for way in ("command", "Python"):
        monkeypatch.setattr(Kept, "given", [])
        if way == "command":
            play(agent, lambda: show(make_env(env_id)), [Episode(0, None)])
        else:
            evaluate_policy(agent, make_vec_env(env_id, target_return=float("inf")), n_eval_episodes=1)
        assert {np.shape(action) for action in Kept.given} == {space.shape}
        assert {np.asarray(action).dtype for action in Kept.given} == {space.dtype}
        played.append(np.array(Kept.given))
    np.testing.assert_array_equal(*played)


@pytest.fixture(scope="module")
def acting():
    """An agent, what two environments show it, and its memory of them."""
    agent = make_agent(toy_episodes(4))
    env = make_vec_env("ToyBox-v0", 2, target_return=5.0)
    observation = env.reset()
    _, state = agent.predict(observation)
    return agent, observation, state


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.ones(1, bool), "episode_start is of 1 environments, the observation of 2"),
        (np.zeros(3, bool), "episode_start is of 3 environments, the observation of 2"),
        (np.zeros((2, 1), bool), r"episode_start is of shape \(2, 1\), the observation of 2"),
        (True, "episode_start is of 1 environments, the observation of 2"),
    ],
)
def test_an_episode_begins_in_environments_that_are_there(acting, start, message):
    agent, observation, state = acting
    with pytest.raises(ValueError, match=f"^{message}$"):
        agent.predict(observation, state, start)


@pytest.mark.parametrize("memory", ["carried", "window"])
def test_a_memory_is_of_as_many_environments_as_are_shown(memory):
    agent = make_agent(toy_episodes(4), memory=memory)
    two = make_vec_env("ToyBox-v0", 2, target_return=5.0).reset()
    one = {key: value[:1] for key, value in two.items()}
    single = {key: value[0] for key, value in two.items()}
    _, of_one = agent.predict(one)
    _, of_two = agent.predict(two)
    with pytest.raises(ValueError, match="the state is of 1 environments, the observation of 2"):
        agent.predict(two, of_one)
    for alone in (one, single):
        agent.predict(alone, of_one)
        with pytest.raises(ValueError, match="the state is of 2 environments, the observation of 1"):
            agent.predict(alone, of_two)
    with pytest.raises(ValueError, match="is None at first, and then what predict has returned"):
        agent.predict(one, "state")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"observation": np.zeros((2, 5))}, r"observation is \(2, 5\), where \(2, 2\) belongs"),
        ({"return_to_go": np.zeros((1, 1))}, r"return_to_go is \(1, 1\), where \(2, 1\) belongs"),
        ({"previous_action": np.zeros((1, 1))}, r"previous_action is \(1, 1\), where \(2, 1\) belongs"),
        ({"observation": np.array([[0, 0], [np.nan, 0]])}, "observation of environment 1 is not finite.*"),
        (
            {"previous_action": np.array([[np.inf], [0]], np.float32)},
            "previous_action of environment 0 is not finite.*",
        ),
    ],
)
def test_what_is_no_observation_of_these_environments_chooses_no_action(acting, wrong, message):
    agent, observation, state = acting
    with pytest.raises(ValueError, match=f"^{message}$"):
        agent.predict(observation | wrong, state)


def test_a_previous_action_is_of_any_kind_of_float(acting):
    agent, observation, _ = acting
    wider = {key: value.astype(np.float64) for key, value in observation.items()}
    np.testing.assert_array_equal(agent.predict(wider)[0], agent.predict(observation)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"previous_action": [7, 3]},
            "previous_action of environment 0 is 7, where an agent of 3 choices is shown 0 to 2, .*",
        ),
        ({"previous_action": [3, -1]}, "previous_action of environment 1 is -1, where an .*, and 3 for none yet"),
        ({"previous_action": [1.0, 1.0]}, r"previous_action is of torch\.float\d\d, where an agent of 3 choices is .*"),
        ({"previous_action": [True, False]}, r"previous_action is of torch\.bool, where an agent of 3 choices is .*"),
        (
            {"previous_action": [3, 2]},
            "previous_action of environment 1 is 2, where an environment of the 3 .* at timestep 0, .*",
        ),
        ({"timestep": [[-1], [0]]}, "timestep of environment 0 is -1, where 0 or more belongs"),
    ],
)
def test_what_is_no_choice_or_no_timestep_chooses_no_action(wrong, message):
    agent = make_agent(toy_episodes(4, discrete=True), timestep_embedding=True)
    observation = make_vec_env("ToyDiscrete-v0", 2, target_return=5.0).reset()
    agent.predict(observation)
    with pytest.raises(ValueError, match=f"^{message}$"):
        agent.predict(observation | {key: np.array(value) for key, value in wrong.items()})
    for dtype in (np.uint8, np.int32, np.uint64):
        agent.predict(observation | {"previous_action": np.array([3, 3], dtype)})


class Choices(gym.Env):
    """Has as many choices as it is told."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, n):
        self.action_space = gym.spaces.Discrete(n)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


if "UnrollChoices-v0" not in gym.registry:
    gym.register("UnrollChoices-v0", Choices, max_episode_steps=4)


def test_an_agent_plays_no_environment_of_another_number_of_choices(tmp_path):
    episodes = toy_episodes(4, discrete=True)
    agent = make_agent(episodes)
    agent.save(tmp_path / "run")
    for n in (2, 3, 4):
        env = make_vec_env("UnrollChoices-v0", env_kwargs={"n": n}, target_return=0.0)
        if n == 3:
            evaluate_policy(make_agent(episodes, env=env), env, n_eval_episodes=1)
            continue
        with pytest.raises(ValueError, match=rf"^previous_action of environment 0 is {n}, where an .* 3 choices .*$"):
            evaluate_policy(agent, env, n_eval_episodes=1)
        message = rf"^env takes actions of Discrete\({n}\), the policy was trained on Discrete\(3\)$"
        with pytest.raises(EnvError, match=message):
            make_agent(episodes, env=env)
        with pytest.raises(EnvError, match=message):
            DecisionAgent.load(tmp_path / "run", env=env, device="cpu")


@pytest.mark.parametrize("discrete", [False, True])
def test_an_agent_that_follows_a_return_is_asked_for_a_number(discrete):
    agent = make_agent(toy_episodes(4, discrete), condition="return")
    env = make_vec_env(agent.task["env"], 2, target_return=float("inf"))
    with pytest.raises(ValueError, match="return_to_go of environment 0 is not finite, so that no action"):
        agent.predict(env.reset())
    agent.predict(make_vec_env(agent.task["env"], 2, target_return=5.0).reset())


def test_the_latency_is_that_of_steps_that_are_played():
    """The largest number that float32 holds, which stands for no target, makes NaN of what follows a return."""
    agent = make_agent(toy_episodes(4), condition="return")
    seen = []
    predict = agent.predict
    agent.predict = lambda *arguments, **named: seen.append(predict(*arguments, **named)) or seen[-1]
    evaluate(decision_player(agent, "ToyBox-v0", [3.0], "carried"), 1)
    assert all(np.isfinite(actions).all() for actions, _ in seen)


def test_an_observation_without_a_return_to_go_says_what_makes_one(acting):
    agent, observation, _ = acting
    for other in (observation["observation"], {"observation": observation["observation"]}):
        with pytest.raises(ValueError, match=r"the observation is no dict of .* make_vec_env\(…, target_return=…\)"):
            agent.predict(other)


LENGTHS = np.full(60, LENGTH)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(lengths=LENGTHS[:30]), r"lengths add up to 360, observations has 720 rows and \d more"),
        (dict(lengths=np.append(LENGTHS, 0)), r"episode 60 has no steps and \d more"),
        (dict(lengths=LENGTHS * 1.0), "lengths is of float64, not of int64"),
        (dict(lengths=LENGTHS.astype(np.uint8)), "lengths is of uint8, not of int64"),
        (dict(lengths=LENGTHS.astype(np.uint64)), "lengths is of uint64, not of int64"),
        (dict(rewards=np.ones((720, 1))), "rewards has 2 axes, not 1"),
        (dict(rewards=[1.0] * 720), "rewards is of type list, not an array"),
        (dict(rewards=np.full(720, np.nan)), "rewards is NaN or infinite in 720 rows, first in row 0"),
        (dict(actions=np.full((720, 1), 5.0)), r"actions lies outside of Box\(-2, 2, 1 wide\) in 720 rows, .*"),
        (dict(action_space=gym.spaces.MultiBinary(1)), r"actions is of MultiBinary\(1\); a Box of one axis or .*"),
        (dict(action_space=gym.spaces.Box(-2, 2, (1, 1))), r"actions is of Box.*; a Box of one axis or .*"),
        (dict(action_space=gym.spaces.Discrete(3)), "actions has 2 axes, not 1"),
        (
            dict(observations=np.full((720, 2), 1e300)),
            r"column 0 of observations reaches 1e\+300, float32 .* and 1 more",
        ),
        (dict(env_kwargs={"size": np.int64(3)}), "env_kwargs: size is no plain value"),
        (dict(env_id="no id"), "env_id 'no id' is not the id of an environment"),
    ],
)
def test_episodes_of_ones_own_are_looked_through_before_they_are_learned_from(wrong, message):
    episodes = toy_episodes()
    unfit = dataclasses.replace(episodes, **wrong)
    with pytest.raises(DatasetError, match=f"^toy: .*{message}$"):
        make_agent(unfit)
    with pytest.raises(DatasetError, match=f"^toy: .*{message}$"):
        make_agent(episodes).set_episodes(unfit)


def test_what_float32_loses_of_episodes_of_ones_own_is_told(caplog):
    episodes = toy_episodes()
    make_agent(dataclasses.replace(episodes, observations=episodes.observations.astype(np.float64)))
    assert not caplog.text
    make_agent(dataclasses.replace(episodes, observations=episodes.observations + np.float64(1e9)))
    assert "toy: column 1 of observations goes from" in caplog.text


@pytest.mark.parametrize(("given", "kind"), [("data.hdf5", "str"), ([toy_episodes(2)] * 2, "list")])
def test_what_are_no_episodes_is_one_line_that_says_what_makes_them(given, kind):
    message = rf"^episodes is of type {kind}, not Episodes, which load_episodes\(…\) makes of one or several sources$"
    with pytest.raises(DatasetError, match=message):
        DecisionAgent(given)
    with pytest.raises(DatasetError, match=message):
        make_agent(toy_episodes(2)).set_episodes(given)


@pytest.mark.parametrize(
    ("name", "value", "source"),
    [
        ("context", 5, "argument context"),
        ("max_timestep", 5, "argument timestep_embedding"),
        ("observation_dim", 5, "episodes"),
    ],
)
def test_an_argument_of_the_policy_that_the_agent_sets_is_refused(name, value, source):
    message = f"policy_kwargs: {name} is not taken here, it is set by the .*{source}$"
    episodes = toy_episodes(2)
    with pytest.raises(HyperparameterError, match=message):
        DecisionAgent(episodes, policy_kwargs={name: value})
    again = DecisionAgent(episodes, policy_kwargs=make_agent(episodes, context=3).policy_kwargs, context=3)
    assert again.policy.config["context"] == 3


def test_what_is_said_of_the_data_is_of_those_that_it_learns_from(tmp_path):
    episodes = toy_episodes(8)
    agent = make_agent(episodes, condition="return", top_fraction=0.5)
    others = dataclasses.replace(episodes, rewards=episodes.rewards + 100, name="others", env_id=None)
    agent.save(tmp_path / "agent")
    expected = make_agent(others, condition="return", top_fraction=0.5).task | {"env": agent.task["env"]}
    agent.set_episodes(others)
    assert agent.task == expected
    loaded = DecisionAgent.load(tmp_path / "agent", episodes=others, device="cpu").task
    assert loaded | {"reference_returns": expected["reference_returns"]} == expected


def test_statistics_that_were_kept_do_not_hide_new_values():
    episodes = toy_episodes()
    known = dataclasses.replace(episodes, known_statistics=episodes.statistics())
    with pytest.raises(DatasetError, match="actions lies outside"):
        make_agent(dataclasses.replace(known, actions=9 * known.actions))


def test_what_is_in_a_file_is_not_read_again(tmp_path, monkeypatch):
    episodes = toy_episodes()
    np.save(tmp_path / "observations.npy", episodes.observations)
    mapped = np.load(tmp_path / "observations.npy", mmap_mode="r")
    monkeypatch.setattr(doctor, "_bad_values", lambda episodes: ["read"])
    doctor.check_fit(dataclasses.replace(episodes, observations=mapped))
    with pytest.raises(DatasetError, match="toy: read"):
        doctor.check_fit(episodes)


def test_reference_returns_of_numpy_are_saved(tmp_path):
    episodes = dataclasses.replace(toy_episodes(4), reference_returns=(np.float32(0), np.float32(24)))
    make_agent(episodes).save(tmp_path / "run")
    assert DecisionAgent.load(tmp_path / "run", device="cpu").task["reference_returns"] == [0.0, 24.0]
