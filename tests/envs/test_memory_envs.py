"""Tasks that need memory: their rules, what memory earns in them, and what the lack of it costs."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from unroll.envs.make import make_env
from unroll.envs.tasks import MEMORY_TASKS, NO_VELOCITY_TASKS, POSITIONS, RepeatFirst, RepeatPrevious

CARDS = [name for name in MEMORY_TASKS if name.startswith("Repeat")]
MAZES = [name for name in MEMORY_TASKS if name.startswith("TMaze")]
WRAPPED = "is different from the unwrapped version"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its warnings


def play(env, policy, seed=None):
    """(return, observations, rewards) of an episode in which ``policy`` maps the observations so far to an action."""
    observations, rewards, over = [env.reset(seed=seed)[0]], [], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy(observations))
        observations.append(observation)
        rewards.append(reward)
        over = terminated or truncated
        assert not truncated
    return sum(rewards), observations, rewards


def warnings_of_the_checker(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(env_id, disable_env_checker=True), skip_render_check=True)
    return {str(warning.message) for warning in caught if WRAPPED not in str(warning.message)}


@pytest.mark.parametrize("env_id", MEMORY_TASKS)
def test_gymnasiums_checker_has_no_complaint(env_id):
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", POSITIONS)
def test_without_velocities_gymnasiums_checker_has_no_complaint_that_the_original_has_not(env_id):
    assert warnings_of_the_checker(env_id.replace("-", "NoVel-")) <= warnings_of_the_checker(env_id)


@pytest.mark.parametrize("env_id", [*MEMORY_TASKS, *NO_VELOCITY_TASKS])
def test_a_name_is_enough_and_a_seed_is_an_episode(env_id):
    def episode():
        env = make_env(env_id)
        assert env.spec.id == env_id
        env.action_space.seed(1)
        rows = [env.reset(seed=3)[0]]
        rewards = []
        for _ in range(9):
            observation, reward, *_ = env.step(env.action_space.sample())
            rows.append(observation)
            rewards.append(reward)
        assert all(env.observation_space.contains(row) for row in rows)
        return np.array(rows), np.array(rewards)

    (rows, rewards), (again, rewards_again) = episode(), episode()
    np.testing.assert_array_equal(rows, again)
    np.testing.assert_array_equal(rewards, rewards_again)


@pytest.mark.parametrize(("env_id", "width"), list(zip(POSITIONS, (2, 2, 5, 8, 8), strict=True)))
def test_only_velocities_are_missing(env_id, width):
    whole, part = gym.make(env_id), gym.make(env_id.replace("-", "NoVel-"))
    whole.action_space.seed(0)
    seen, shown = whole.reset(seed=4)[0], part.reset(seed=4)[0]
    for _ in range(20):
        assert shown.shape == part.observation_space.shape == (width,)
        assert shown.dtype == part.observation_space.dtype == seen.dtype == whole.observation_space.dtype
        np.testing.assert_array_equal(shown, seen[list(POSITIONS[env_id])])
        action = whole.action_space.sample()
        (seen, *rest, _), (shown, *same, _) = whole.step(action), part.step(action)
        assert rest == same


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"])
def test_what_is_left_of_a_mujoco_observation_is_its_positions(env_id):
    env = gym.make(env_id)
    seen, _ = env.reset(seed=0)
    np.testing.assert_array_equal(seen[list(POSITIONS[env_id])], env.unwrapped.data.qpos[1:])


@pytest.mark.parametrize("env_id", POSITIONS)
def test_an_episode_without_velocities_ends_when_the_original_does(env_id):
    name = env_id.replace("-", "NoVel-")
    assert gym.spec(name).max_episode_steps == gym.spec(env_id).max_episode_steps
    limits, env = [], gym.make(name)
    while isinstance(env, gym.Wrapper):
        limits += [env] if isinstance(env, gym.wrappers.TimeLimit) else []
        env = env.env
    assert len(limits) == 1


def test_an_episode_without_velocities_is_truncated_at_the_limit():
    env = make_env("PendulumNoVel-v1")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_without_velocities_the_originals_arguments_still_work():
    env = make_env("HopperNoVel-v5", max_episode_steps=2, terminate_when_unhealthy=False)
    env.reset(seed=0)
    assert [env.step(np.zeros(3, np.float32))[3] for _ in range(2)] == [False, True]
    assert make_env("CartPoleNoVel-v1", render_mode="rgb_array").render_mode == "rgb_array"


def straight(choose):
    """Right until the junction; there ``choose`` says where to, given all observations."""
    return lambda seen: choose(seen) if seen[-1][0] else 0


def remember(seen):
    return 1 if seen[0][1] > 0 else 3


@pytest.mark.parametrize("env_id", MAZES)
def test_who_remembers_the_cue_gets_1_and_who_guesses_half_of_it(env_id):
    env = gym.make(env_id)
    length = env.unwrapped.length
    for seed in range(5):
        total, seen, rewards = play(env, straight(remember), seed)
        assert total == 1
        assert rewards == [0.0] * length + [1.0]
        assert np.abs(np.array(seen[1:-1])[:, 1]).sum() == 0  # the cue is in the first observation alone
        assert [row[0] for row in seen] == [0] * length + [1, 1]
    env.reset(seed=0)
    guesses = [play(env, straight(lambda seen: 1))[0] for _ in range(400)]
    assert set(guesses) == {0, 1}
    assert abs(np.mean(guesses) - 0.5) < 4 * 0.5 / 20


def test_whoever_is_late_in_the_maze_pays_and_finds_no_goal():
    env = gym.make("TMaze-v0", length=4)
    assert play(env, lambda seen: 2)[0] == pytest.approx(-1)  # never leaves
    assert play(env, lambda seen: 1)[2] == [-0.25] * 4 + [0]  # runs against a wall
    _, seen, rewards = play(env, lambda seen: 2 if len(seen) == 3 else 0)  # one step back
    assert rewards == [0, 0, -0.25, -0.25, 0]
    assert [row[0] for row in seen] == [0, 0, 0, 0, 0, 0]
    wrong = straight(lambda seen: 4 - remember(seen))
    assert play(env, wrong)[0] == 0


@pytest.mark.parametrize("env_id", CARDS)
def test_the_right_answers_get_1_and_the_wrong_ones_minus_1(env_id):
    env = gym.make(env_id)
    task = env.unwrapped

    def answer(seen):
        return seen[-task.k] if len(seen) >= task.k else 0

    policy = answer if isinstance(task, RepeatPrevious) else lambda seen: seen[0]
    total, seen, rewards = play(env, policy, seed=1)
    assert total == pytest.approx(1)
    assert np.bincount(seen).tolist() == [task.cards // 4] * 4  # all cards were shown
    unscored = task.k - 1 if isinstance(task, RepeatPrevious) else 0
    assert rewards[:unscored] == [0] * unscored
    assert len(set(rewards[unscored:])) == 1
    assert play(env, lambda seen: (policy(seen) + 1) % 4)[0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("env_id", "decks", "k"),
    [
        ("RepeatPreviousEasy-v0", 1, 4),
        ("RepeatPreviousMedium-v0", 2, 32),
        ("RepeatPreviousHard-v0", 3, 64),
        ("RepeatFirstEasy-v0", 1, None),
        ("RepeatFirstMedium-v0", 8, None),
        ("RepeatFirstHard-v0", 16, None),
    ],
)
def test_the_sizes_are_popgyms(env_id, decks, k):
    task = gym.make(env_id).unwrapped
    assert (task.cards, getattr(task, "k", None)) == (52 * decks, k)


@pytest.mark.parametrize(("task", "expected"), [(RepeatPrevious(), -0.4902), (RepeatFirst(), -0.5002)])
def test_cards_cannot_be_repeated_without_memory(task, expected):
    task.reset(seed=0)
    totals = [play(task, lambda seen: (seen[-1] + 1) % 4)[0] for _ in range(1000)]
    assert abs(np.mean(totals) - expected) < 4 * np.std(totals) / np.sqrt(len(totals))


@pytest.mark.parametrize("kwargs", [{"decks": 0}, {"k": 0}, {"k": 52}])
def test_a_deck_that_is_too_small_is_refused(kwargs):
    with pytest.raises(ValueError, match=r"at least one|must be 1 to 51"):
        RepeatPrevious(**kwargs)


@pytest.mark.parametrize(
    ("difficulty", "name"), [(d, n) for d in ("Easy", "Medium", "Hard") for n in ("First", "Previous")]
)
def test_the_rules_are_popgyms(difficulty, name):
    pytest.importorskip("popgym")
    ours, theirs = gym.make(f"Repeat{name}{difficulty}-v0"), make_env(f"popgym-Repeat{name}{difficulty}-v0").unwrapped
    random, task, over = np.random.default_rng(0), ours.unwrapped, False
    ours.reset(seed=0)
    theirs.reset(seed=0)
    task._suits = theirs.deck.suits_idx[theirs.deck.idx[::-1]].tolist()  # the same cards
    task._answers = task.answers(task._suits)
    while not over:
        action = int(random.integers(4))
        (*observed, over, truncated, _), expected = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(observed, expected[:2])
        assert (over, truncated) == expected[2:4]
