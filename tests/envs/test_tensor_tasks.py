"""The tasks over tensors are, step for step, the ordinary environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from unroll.envs.make import make_env
from unroll.envs.tensor import PreviousTensorStep, TensorEnv
from unroll.envs.tensor_tasks import TENSOR_TASKS, make_tensor_env
from unroll.errors import EnvError

N = 3
CONTROL = ["CartPole-v1", "CartPoleNoVel-v1", "Pendulum-v1", "PendulumNoVel-v1"]


def actions_of(space, rng):
    """Actions for all environments, of which the last one keeps to the middle."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=N)
    return rng.uniform(1.2 * space.low, 1.2 * space.high, (N, *space.shape)).astype(np.float32)


def put_start(task, env, i):
    """Put an ordinary environment into the state of environment i, at the start of an episode."""
    inner = env.unwrapped
    if "physics" in task.state:
        inner.state = task.state["physics"][i].numpy().copy()
    elif "goal" in task.state:
        inner._goal = int(task.state["goal"][i])


def deck_of(task, env, shown, i):
    """Give an ordinary card game the deck that environment i has shown."""
    inner = env.unwrapped
    inner._suits = [int(row[i].argmax()) for row in shown]
    inner._answers = inner.answers(inner._suits)


def played(task, policy, episodes):
    """Step the task until every environment has had so many episodes: lists over steps of what each step gave."""
    observation, _ = task.reset(seed=3)
    steps = []
    ended = np.zeros(N, int)
    while ended.min() < episodes:
        starts = {name: value.clone() for name, value in task.state.items()}
        action = policy(observation.numpy(), task.elapsed.numpy().copy())
        new, rewards, terminated, truncated, info = task.step(torch.as_tensor(action))
        steps.append((starts, observation, action, new, rewards, terminated, truncated, info["final_obs"]))
        observation = new
        ended += (terminated | truncated).numpy()
    return steps


@pytest.mark.parametrize("env_id", TENSOR_TASKS)
def test_a_task_shows_and_takes_what_the_ordinary_one_does(env_id):
    task = make_tensor_env(env_id, N)
    env = make_env(env_id)
    assert task.single_observation_space == env.observation_space
    assert task.single_action_space == env.action_space
    assert task.reset(seed=0)[0].numpy().dtype == env.observation_space.dtype


@pytest.mark.parametrize(("action", "reward"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v1", "PendulumNoVel-v1"])
def test_the_step_before_is_shown_as_the_ordinary_environment_shows_it(env_id, action, reward):
    shows = {"previous_action": action, "previous_reward": reward}
    task = make_tensor_env(env_id, N, **shows)
    envs = [make_env(env_id, **shows) for _ in range(N)]
    assert task.single_observation_space == envs[0].observation_space
    width = task.env.single_observation_space.shape[0]
    shown = task.reset(seed=1)[0]
    assert shown.numpy().dtype == envs[0].observation_space.dtype
    for i, env in enumerate(envs):
        first = env.reset(seed=0)[0]
        put_start(task.env, env, i)
        np.testing.assert_array_equal(shown[i][width:], first[width:])  # no action yet, and no reward
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(210):
        actions = actions_of(task.single_action_space, rng)
        new, _, terminated, truncated, info = task.step(torch.as_tensor(actions))
        for i, env in enumerate(envs):
            last, _, over, cut, _ = env.step(actions[i])
            np.testing.assert_allclose(info["final_obs"][i], last, rtol=1e-5, atol=1e-5)
            assert (bool(terminated[i]), bool(truncated[i])) == (over, cut)
            if over or cut:
                ended += 1
                first = env.reset()[0]
                put_start(task.env, env, i)
                np.testing.assert_array_equal(new[i][width:], first[width:])
            else:
                torch.testing.assert_close(new[i], info["final_obs"][i])
    assert ended >= N


def test_a_saved_task_goes_on_with_the_step_that_it_showed_last():
    task = make_tensor_env("CartPole-v1", N, previous_action=True, previous_reward=True)
    task.reset(seed=2)
    actions = torch.tensor([0, 1, 1])
    task.step(actions)
    state = {name: value.clone() for name, value in task.save_state().items()}
    other = make_tensor_env("CartPole-v1", N, previous_action=True, previous_reward=True)
    other.reset(seed=3)
    other.load_state(state)
    assert torch.equal(other.save_state()["previous_step"], state["previous_step"])
    for _ in range(30):
        ours, theirs = task.step(actions)[0], other.step(actions)[0]
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=r"previous_step is \(3, 4\), not \(3, 3\)"):
        make_tensor_env("CartPole-v1", N, previous_action=True).load_state(state)


def test_previous_actions_of_another_kind_are_refused():
    class Switches(TensorEnv):
        reset = step = None

    switches = Switches(N, gym.spaces.Box(-1, 1, (2,)), gym.spaces.MultiBinary(2))
    with pytest.raises(EnvError, match="Switches: previous_action is for actions that are Discrete or a Box"):
        PreviousTensorStep(switches)


def balance(env_id):
    """A policy by which CartPole's pole stands until the time limit in the last environment, by its whole state."""
    rng = np.random.default_rng(0)

    def act(task):
        action = actions_of(task.single_action_space, rng)
        if "CartPole" in env_id:
            x, x_dot, theta, theta_dot = task.state["physics"][-1].tolist()
            action[-1] = int(theta + 0.5 * theta_dot + 0.02 * x + 0.05 * x_dot > 0)
        return action

    return act


@pytest.mark.parametrize("env_id", CONTROL)
def test_control_is_gymnasiums_over_whole_episodes_and_their_ends(env_id):
    task = make_tensor_env(env_id, N)
    act = balance(env_id)
    envs = [make_env(env_id) for _ in range(N)]
    task.reset(seed=1)
    for i, env in enumerate(envs):
        env.reset(seed=0)
        put_start(task, env, i)
    ends = []
    for _ in range(520):
        action = act(task)
        new, rewards, terminated, truncated, info = task.step(torch.as_tensor(action))
        for i, env in enumerate(envs):
            shown, reward, ended, cut, _ = env.step(action[i])
            np.testing.assert_allclose(info["final_obs"][i], shown, rtol=1e-5, atol=1e-5)
            assert float(rewards[i]) == pytest.approx(float(reward), abs=1e-5)
            assert (bool(terminated[i]), bool(truncated[i])) == (ended, cut)
            if ended or cut:
                ends.append("terminated" if ended else "truncated")
                env.reset()
                put_start(task, env, i)
                assert not np.allclose(new[i], shown)
            else:
                torch.testing.assert_close(new[i], info["final_obs"][i])
    assert "truncated" in ends
    assert ("terminated" in ends) == ("CartPole" in env_id)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_maze_is_that_of_tasks_for_every_kind_of_step(length):
    task = make_tensor_env("TMaze-v0", N, env_kwargs={"length": length})
    rng = np.random.default_rng(length)

    def policy(observation, elapsed):
        # mostly to the right, so that the junction is reached; at the end any
        action = np.where(rng.random(N) < 0.85, 0, rng.integers(4, size=N))
        return np.where(elapsed == length, rng.integers(4, size=N), action)

    env = make_env("TMaze-v0", env_kwargs={"length": length})
    paid = set()
    for i in range(N):
        env.reset()
        for starts, shown, action, _, rewards, terminated, truncated, final in played(task, policy, 30):
            if env.unwrapped._t == 0:
                env.unwrapped._goal = int(starts["goal"][i])
                assert shown[i].tolist() == [0, env.unwrapped._goal]
            theirs, reward, over, _, _ = env.step(action[i])
            assert final[i].tolist() == theirs.tolist()
            assert float(rewards[i]) == pytest.approx(reward)
            assert (bool(terminated[i]), bool(truncated[i])) == (over, False)
            paid.add(round(reward, 3))
            if over:
                env.reset()
    assert paid == {0.0, 1.0, round(-1 / length, 3)}


@pytest.mark.parametrize(
    ("env_id", "sizes"),
    [
        ("RepeatPrevious-v0", {}),
        ("RepeatPrevious-v0", {"k": 1}),
        ("RepeatPrevious-v0", {"decks": 2, "k": 51}),
        ("RepeatFirst-v0", {"decks": 2}),
        ("RepeatPreviousEasy-v0", {}),
    ],
)
def test_cards_are_paid_as_in_the_ordinary_game_of_the_same_deck(env_id, sizes):
    task = make_tensor_env(env_id, N, env_kwargs=sizes)
    rng = np.random.default_rng(0)
    env = make_env(env_id, env_kwargs=sizes)
    cards = task.cards
    steps = played(task, lambda *_: rng.integers(4, size=N), 2)
    assert len(steps) == 2 * (cards - 1)  # all episodes are as long as one
    for i in range(N):
        for episode in (steps[: cards - 1], steps[cards - 1 :]):
            env.reset()
            deck = [step[1] for step in episode] + [episode[-1][-1]]
            deck_of(task, env, deck, i)
            assert np.bincount(env.unwrapped._suits).tolist() == [cards // 4] * 4
            total = 0.0
            for _, _, action, _, rewards, terminated, truncated, final in episode:
                theirs, reward, over, _, _ = env.step(action[i])
                assert final[i].tolist() == theirs.tolist()
                assert float(rewards[i]) == pytest.approx(reward, rel=1e-5)
                assert (bool(terminated[i]), bool(truncated[i])) == (over, False)
                total += reward
            assert over


def test_decks_are_shuffled():
    """After two cards of a suit another one of it is as likely as in a deck: 11/50."""
    task = make_tensor_env("RepeatFirst-v0", 20_000)
    first, _ = task.reset(seed=0)
    second = task.step(torch.zeros(20_000, dtype=torch.int64))[0]
    third = task.step(torch.zeros(20_000, dtype=torch.int64))[0]
    same = (first == second).all(1)
    assert float(same.float().mean()) == pytest.approx(12 / 51, abs=0.01)
    assert float((second == third).all(1)[same].float().mean()) == pytest.approx(11 / 50, abs=0.02)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "TMaze10-v0", "RepeatPreviousEasy-v0"])
def test_a_saved_task_goes_on_to_the_same_bits(env_id):
    rng = np.random.default_rng(0)
    task = make_tensor_env(env_id, N)
    task.reset(seed=5)
    other = make_tensor_env(env_id, N)
    other.reset()
    actions = [torch.as_tensor(actions_of(task.single_action_space, rng)) for _ in range(260)]
    for action in actions[:7]:
        task.step(action)
    state = {name: value.clone() for name, value in task.save_state().items()}
    expected = [task.step(action)[0] for action in actions[7:]]
    other.load_state(state)
    assert all(torch.equal(other.step(action)[0], wanted) for action, wanted in zip(actions[7:], expected, strict=True))


def test_a_seed_gives_the_same_episodes_and_none_goes_on():
    task = make_tensor_env("CartPole-v1", N)
    first, _ = task.reset(seed=7)
    second, _ = task.reset()
    assert not torch.equal(first, second)
    assert torch.equal(task.reset(seed=7)[0], first)
    assert len({tuple(row) for row in first.tolist()}) == N


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "said"),
    [
        ("Hopper-v5", {}, "Hopper-v5 has no form of tensors; these have one: CartPole-v1, CartPoleNoVel-v1"),
        ("Pendulum-v1", {"g": 9.8}, "Pendulum-v1 as tensors takes no arguments, not g"),
        ("RepeatPrevious-v0", {"length": 3}, "takes decks and k, not length"),
        ("TMaze-v0", {"length": 0}, "TMaze-v0: length is 0, a corridor has at least one step"),
        ("RepeatPrevious-v0", {"k": 60}, "k is 60, it must be 1 to 51 with 52 cards"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(env_id, env_kwargs, said):
    with pytest.raises(EnvError, match=said) as caught:
        make_tensor_env(env_id, 2, env_kwargs=env_kwargs)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_step_is_read_by_the_host():
    """On PyTorch's device without numbers whatever asks for one fails."""
    for env_id in ("CartPoleNoVel-v1", "Pendulum-v1", "TMaze10-v0", "RepeatPreviousEasy-v0", "RepeatFirstEasy-v0"):
        task = make_tensor_env(env_id, N)
        task.reset(seed=0)
        task.device = torch.device("meta")
        task.uniform = lambda *shape: torch.empty(N, *shape, dtype=torch.float64, device="meta")
        if hasattr(task, "high"):
            task.high = task.high.to("meta")
        task.state = {name: value.to("meta") for name, value in task.state.items()}
        task.elapsed = task.elapsed.to("meta")
        observation, rewards, terminated, truncated, info = task.step(
            torch.empty(N, *task.single_action_space.shape, device="meta")
        )
        for value in (observation, rewards, terminated, truncated, info["final_obs"]):
            assert value.is_meta
