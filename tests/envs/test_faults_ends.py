"""Where episodes of an HDF5 file end: missing timeouts, terminals that are no ends, flags that are none."""

import dataclasses

import gymnasium as gym
import h5py
import numpy as np
import pytest

from toy import TINY
from unroll.commands import inspect, train
from unroll.envs import load_episodes
from unroll.envs.datasets.doctor import remarks
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.datasets.reference import d4rl_table
from unroll.envs.datasets.sources.hdf5 import load_hdf5
from unroll.errors import DatasetError


def walks(lengths, seed=0):
    """Random walks of these lengths, as D4RL's fields: each begins near the origin and ends far from it."""
    random = np.random.default_rng(seed)
    seen, following = [], []
    for length in lengths:
        path = np.cumsum(random.uniform(0.5, 1.0, (length + 1, 2)), 0)
        seen.append(path[:-1])
        following.append(path[1:])
    n = sum(lengths)
    return {
        "observations": np.concatenate(seen).astype(np.float32),
        "next_observations": np.concatenate(following).astype(np.float32),
        "actions": random.uniform(-1, 1, (n, 1)).astype(np.float32),
        "rewards": np.ones(n, np.float32),
        "terminals": np.zeros(n, bool),
    }


def ends_of(lengths):
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    return ends


LENGTHS = [9, 19, 5, 19, 12]


@pytest.fixture(params=["resident", "in blocks of few rows"])
def blocks(request, monkeypatch):
    if request.param != "resident":
        monkeypatch.setattr("unroll.envs.datasets.statistics.BLOCK", 100)


@pytest.mark.parametrize("following", [False, True])
def test_a_file_in_which_nothing_ends_is_told_to_be_one_episode(write, caplog, following):
    fields = walks([30])
    fields["timeouts"] = np.zeros_like(fields["terminals"])
    if not following:  # else these say that nothing ends
        del fields["next_observations"]
    assert load_episodes(str(write(fields))).lengths.tolist() == [30]
    told = "terminals and timeouts are all false: the 30 rows are taken for one episode" in caplog.text
    assert told == (not following)


@pytest.mark.parametrize("timeouts", ["missing", "all false"])
@pytest.mark.parametrize("env", ["", "Pendulum-v1"])
def test_without_timeouts_episodes_are_cut_where_the_next_row_is_another(write, caplog, blocks, timeouts, env):
    fields = walks(LENGTHS)
    fields["terminals"][8] = True  # the first one ends by itself
    if timeouts == "all false":
        fields["timeouts"] = np.zeros_like(fields["terminals"])
    if env:  # 3 numbers, and a limit of 200 that says nothing here
        fields["observations"] = np.pad(fields["observations"], ((0, 0), (0, 1)))
        fields["next_observations"] = np.pad(fields["next_observations"], ((0, 0), (0, 1)))
    episodes = load_episodes(str(write(fields, env=env)))
    assert episodes.lengths.tolist() == LENGTHS
    assert episodes.terminated.tolist() == [True, False, False, False, False]
    assert episodes.truncated.tolist() == [False, True, True, True, False]
    np.testing.assert_array_equal(episodes.final_observations[:, 0], fields["next_observations"][ends_of(LENGTHS), 0])
    assert "an episode is cut off in 3 rows whose next_observations is not the next row" in caplog.text


def test_float64_and_rounding_make_no_end(write):
    fields = walks(LENGTHS)
    fields["next_observations"] = fields["next_observations"].astype(np.float64) * (1 + 1e-7)
    assert load_hdf5(write(fields)).lengths.tolist() == LENGTHS


def test_rows_in_no_order_are_refused_where_nothing_says_what_an_episode_is(write):
    fields = walks(LENGTHS)
    shuffled = np.random.default_rng(0).permutation(sum(LENGTHS))
    fields = {name: values[shuffled] for name, values in fields.items()}
    with pytest.raises(DatasetError, match=r"next_observations is not the next row in \d+ of 64 rows") as error:
        load_hdf5(write(fields))
    assert "\n" not in str(error.value)


def test_what_is_assumed_where_nothing_says_it_is_told(write, caplog):
    fields = walks([500])
    del fields["next_observations"]
    load_episodes(str(write(fields)))
    assert "no timeouts and no known step limit: episodes are assumed to end at terminals alone" in caplog.text
    fields["observations"] = np.zeros((500, 3), np.float32)
    assert load_episodes(str(write(fields, env="Pendulum-v1"))).lengths.tolist() == [200, 200, 100]
    assert "an episode is assumed to be cut off after 200 steps, the limit of Pendulum-v1" in caplog.text


def test_an_episode_longer_than_the_environments_limit_is_remarked(write, caplog, capsys):
    fields = walks([600])
    del fields["next_observations"]
    fields |= {"observations": np.random.default_rng(0).normal(size=(600, 3)), "timeouts": np.zeros(600, bool)}
    path = str(write(fields, env="Pendulum-v1"))
    assert load_episodes(path).lengths.tolist() == [600]
    line = "episode 0 has 600 steps, Pendulum-v1 ends after 200: is an end of an episode missing?"
    assert line in caplog.text
    assert inspect.main([path]) == 0
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("last", [False, True])
def test_next_observations_without_a_break_are_believed_against_the_step_limit(write, caplog, blocks, last):
    fields = walks([600])
    fields |= {name: np.pad(fields[name], ((0, 0), (0, 1))) for name in ("observations", "next_observations")}
    fields["terminals"][-1] = last
    path = str(write(fields, env="Pendulum-v1"))
    episodes = load_episodes(path)
    assert episodes.lengths.tolist() == [600]
    assert episodes.terminated.tolist() == [last]
    assert "none is cut off, as next_observations is the next row wherever no terminal is" in caplog.text
    assert "episode 0 has 600 steps, Pendulum-v1 ends after 200" in caplog.text


@pytest.mark.parametrize(("env", "after"), [("CartPole-v1", None), ("CartPole-v1", 0), ("MountainCar-v0", None)])
def test_next_observations_that_are_the_next_rows_everywhere_say_nothing(write, caplog, blocks, env, after):
    """As a converter makes them that shifts the rows, over resets too. CartPole has terminals, MountainCar none.

    Where it writes zeros after terminals, those over time limits are the next rows nevertheless.
    """
    game = gym.make(env)
    seen, terminals = [], []
    for seed in range(3):
        observation, _ = game.reset(seed=seed)
        ended = False
        while not ended:
            seen.append(observation)
            balanced = int(3 * observation[2] + observation[3] > 0) if after is not None and seed else 0
            observation, _, terminated, truncated, _ = game.step(balanced)
            ended = terminated or truncated
            terminals.append(terminated)
    fields = {
        "observations": np.stack(seen),
        "next_observations": np.roll(np.stack(seen), -1, axis=0),
        "actions": np.zeros(len(seen), int),
        "rewards": np.ones(len(seen)),
        "terminals": np.array(terminals),
    }
    if after is not None:
        fields["next_observations"][fields["terminals"]] = after
    assert len(load_episodes(str(write(fields, env=env)))) == 3
    assert "next_observations is the next row over ends of episodes too, and says nothing of them" in caplog.text
    assert f"the limit of {env}" in caplog.text


SHIFTED = "next_observations is the next row over ends of episodes too, and says nothing of them"


@pytest.mark.parametrize("ended", [False, True])
def test_the_first_observation_of_the_next_episode_is_no_final_one(write, blocks, ended):
    """As a converter makes it that shifts the rows, of a file whose flags are right."""
    fields = walks(LENGTHS) | {"timeouts": ends_of(LENGTHS)}
    if ended:
        fields |= {"terminals": fields["timeouts"], "timeouts": fields["terminals"]}
    seen = fields["observations"]
    for shifted in (np.roll(seen, -1, axis=0), np.concatenate([seen[1:], seen[-1:]])):
        episodes = load_hdf5(write(fields | {"next_observations": shifted}))
        assert episodes.lengths.tolist() == LENGTHS
        assert episodes.final_observations is None
        assert remarks(episodes) == [SHIFTED]


def test_without_timeouts_nothing_is_known_of_what_follows_the_ends(write):
    fields = walks([30, 40, 30])
    fields["terminals"] = ends_of([30, 40, 30])
    fields["next_observations"] = np.roll(fields["observations"], -1, axis=0)
    episodes = load_hdf5(write(fields))
    assert episodes.final_observations is None
    assert remarks(episodes).count(SHIFTED) == 1


@pytest.mark.parametrize("begin", ["home", "near home", "one of two doors"])
def test_episodes_may_end_where_the_next_one_begins(write, begin):
    """Who goes out and comes home ends where all begin, and some at one of few doors by chance."""
    n = {"one of two doors": 3}.get(begin, 20)
    path = np.tile([[0], [1], [2], [1], [0]], (n, 1, 1)).astype(np.float32)
    if begin == "near home":
        path += np.random.default_rng(0).uniform(-1e-8, 1e-8, path.shape)
    if begin == "one of two doors":
        path[1, 0], path[0, -1] = 5, 5
    fields = walks([4] * n) | {
        "observations": path[:, :-1].reshape(-1, 1),
        "next_observations": path[:, 1:].reshape(-1, 1),
        "timeouts": ends_of([4] * n),
    }
    episodes = load_hdf5(write(fields))
    np.testing.assert_array_equal(episodes.final_observations[:, 0], path[:, -1, 0])
    assert remarks(episodes) == []


# Antmaze: a walk stays at its goal, with a terminal and a reward in each row, until a timeout ends it.


def antmaze(successes=5, n=10, length=60):
    fields = walks([length] * n)
    terminals = np.zeros((n, length), bool)
    terminals[:successes, 10:] = True
    place = fields["observations"].reshape(n, length, 2)
    following = fields["next_observations"].reshape(n, length, 2)
    for e in range(successes):  # it stands nearly still
        place[e, 10:] = place[e, 10] + np.random.default_rng(e).normal(scale=0.02, size=(length - 10, 2))
        following[e, 9:-1] = place[e, 10:]
        following[e, -1] = place[e, -1]
    return fields | {
        "terminals": terminals.reshape(-1),
        "rewards": terminals.reshape(-1).astype(np.float32),
        "timeouts": ends_of([length] * n),
    }


@pytest.mark.parametrize("following", [True, False])
def test_terminals_that_mark_the_goal_are_no_ends(write, caplog, blocks, following):
    fields = antmaze()
    if not following:
        del fields["next_observations"]
    episodes = load_episodes(str(write(fields)))
    assert episodes.lengths.tolist() == [60] * 10
    assert not episodes.terminated.any()
    assert episodes.truncated.all()
    assert episodes.returns.tolist() == [50] * 5 + [0] * 5
    assert "terminals are true in 250 rows, row after row in walks that timeouts end" in caplog.text


def test_returns_that_count_every_step_at_the_goal_have_no_reference(write, tmp_path, monkeypatch):
    path = write(antmaze())
    folder = tmp_path / "d4rl"
    folder.mkdir()
    name = "antmaze-umaze-v0"
    path.rename(folder / d4rl_table()[name]["url"].rsplit("/", 1)[1])
    episodes = load_episodes(f"d4rl:{name}")
    assert len(episodes) == 10
    assert episodes.reference_returns is None


def test_terminals_row_after_row_that_nothing_explains_are_refused(write):
    fields = antmaze()
    del fields["next_observations"]
    fields["observations"] = np.random.default_rng(0).normal(size=fields["observations"].shape)
    with pytest.raises(DatasetError, match="makes 245 of 255 episodes one step long, while timeouts end longer walks"):
        load_hdf5(write(fields))


def test_episodes_of_one_step_that_do_end_stay_as_they_are(make_episodes, tmp_path, write):
    fields = antmaze()
    fields["next_observations"][:] = 100  # every row is followed by a reset
    assert len(load_hdf5(write(fields))) == 255
    for lengths in ([1] * 40, [1] * 40 + [9, 8]):  # a bandit, recorded by us and by others
        episodes = make_episodes(lengths)
        write_hdf5(episodes, tmp_path / "own.hdf5")
        assert load_hdf5(tmp_path / "own.hdf5").lengths.tolist() == lengths
        with h5py.File(tmp_path / "own.hdf5", "a") as file:
            del file["final_observations"]
        assert load_hdf5(tmp_path / "own.hdf5").lengths.tolist() == lengths
        (tmp_path / "own.hdf5").unlink()


# Flags


@pytest.mark.parametrize("name", ["terminals", "timeouts"])
@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-1, "-1"), (2, "2"), (0.5, "0.5"), (np.inf, "inf")])
def test_flags_that_are_neither_0_nor_1_are_refused_with_row_and_value(fields, write, blocks, name, value, shown):
    flags = fields[name].astype(np.float64)
    flags[5] = value
    with pytest.raises(DatasetError, match=rf"{name} is {shown} in row 5, where a flag is 0 or 1") as error:
        load_hdf5(write(fields | {name: flags}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32"])
def test_flags_of_any_type_are_read(fields, write, kind):
    for name in ("terminals", "timeouts"):
        fields[name] = fields[name].astype(kind)
    assert load_hdf5(write(fields)).lengths.tolist() == [4, 3, 5]


def test_inverted_terminals_are_warned_of_by_the_doctor_and_the_training(fields, write, capsys, caplog, tmp_path):
    del fields["timeouts"]
    fields["terminals"] = ~fields["terminals"]
    path = str(write(fields))
    line = "10 of 11 episodes have one step: are its terminals 1 - done?"
    assert inspect.main([path]) == 0
    assert line in capsys.readouterr().out
    run = ["--run_dir", str(tmp_path / "run"), *TINY, "--steps", "1", "--device", "cpu"]
    assert train.main(["--dataset", path, *run]) == 0
    assert line in caplog.text


def test_episodes_of_several_steps_are_not_remarked(make_episodes):
    assert remarks(make_episodes([3, 1, 4])) == []
    assert remarks(dataclasses.replace(make_episodes([3, 4]), lengths=np.array([3]))) == []


def test_flags_that_next_observations_speak_against_are_told(write):
    """Half of the timeouts are missing, so that two episodes are one."""
    lengths = [9, 8, 7, 6, 5]
    timeouts = ends_of(lengths)
    timeouts[[8, 23]] = False
    found = remarks(load_hdf5(write(walks(lengths) | {"timeouts": timeouts})))
    text = "next_observations is not the next row in 2 rows, first in row 8, and no flag ends an episode there"
    assert text in found
    whole = walks(lengths) | {"timeouts": ends_of(lengths)}
    assert remarks(load_hdf5(write(whole))) == []


@pytest.mark.parametrize("timeouts", ["some", "all false"])
def test_rows_of_another_order_are_refused_whatever_the_flags_say(write, blocks, timeouts):
    """As of a replay buffer of several environments in turn, and of shuffled transitions."""
    lengths = [10] * 8
    fields = walks(lengths) | {"timeouts": ends_of(lengths)}
    if timeouts == "all false":
        fields |= {"terminals": fields["timeouts"], "timeouts": np.zeros(80, bool)}
    in_turn = np.arange(80).reshape(4, 20).T.reshape(-1)
    for order in (in_turn, np.random.default_rng(0).permutation(80)):
        with pytest.raises(DatasetError, match=r"next row in \d\d of 80 rows, but another one: the rows are not in"):
            load_hdf5(write({name: values[order] for name, values in fields.items()}))


def test_next_observations_that_are_no_rows_of_the_file_are_told_and_not_believed(write):
    fields = walks(LENGTHS) | {"timeouts": ends_of(LENGTHS)}
    for strange in (2 * fields["next_observations"] + 1, fields["observations"], np.zeros((64, 2))):
        episodes = load_hdf5(write(fields | {"next_observations": strange}))
        assert episodes.lengths.tolist() == LENGTHS
        (line,) = remarks(episodes)
        assert "next_observations is not the next row in 59 of 64 rows: the rows are not in the order" in line
        assert line.endswith("or the two are on different scales; episodes end where the flags say")


@pytest.mark.parametrize("timeouts", [True, False])
def test_terminals_after_which_a_walk_goes_on_are_told(write, blocks, timeouts):
    """A goal is reached once in some of the walks, and ends none of them."""
    fields = walks([20] * 6)
    fields["terminals"][[7, 28, 93]] = True
    fields["terminals"][-1] = True  # an end
    if timeouts:
        fields["timeouts"] = ends_of([20] * 6)
    episodes = load_hdf5(write(fields))
    assert episodes.lengths.tolist() == [8, 12, 9, 11, 20, 20, 14, 6, 20]
    text = "next_observations goes on after 3 of 4 terminals, first in row 7: walks are cut there"
    assert any(text in found for found in remarks(episodes))

    shifted = np.roll(fields["observations"], -1, axis=0)
    found = remarks(load_hdf5(write(fields | {"next_observations": shifted})))
    assert not any("goes on after" in text for text in found)  # it goes on over all ends


def test_what_comes_after_an_end_may_be_what_a_reset_shows(write):
    """One of three cards is seen in each step, and so every third episode begins with the one that would have come."""
    ends = ends_of([5] * 60)
    cards = np.random.default_rng(0).integers(3, size=(2, 300, 1))
    fields = walks([5] * 60) | {
        "observations": cards[0],
        "next_observations": np.where(ends[:, None], cards[1], np.roll(cards[0], -1, axis=0)),
        "terminals": ends & (np.arange(300) % 2 == 0),
        "timeouts": ends & (np.arange(300) % 2 == 1),
    }
    assert remarks(load_hdf5(write(fields))) == []


@pytest.mark.parametrize("name", ["timeouts", "terminals"])
def test_flags_of_first_rows_are_told(write, name):
    lengths = [9, 8, 7]
    fields = walks(lengths)
    del fields["next_observations"]
    flags = np.roll(ends_of(lengths), 1)
    found = remarks(load_hdf5(write(fields | {"timeouts": np.zeros(24, bool)} | {name: flags})))
    assert any("do the flags mark where episodes begin?" in text for text in found)


def test_terminals_of_two_rows_are_remarked(write):
    """Half of the episodes have one step."""
    fields = walks([10, 10, 10])
    del fields["next_observations"]
    ends = ends_of([10, 10, 10])
    found = remarks(load_hdf5(write(fields | {"terminals": ends | np.roll(ends, -1)})))
    assert any("3 of 6 episodes have one step" in text for text in found)


@pytest.mark.parametrize("env", ["", "Pendulum-v1"])
@pytest.mark.parametrize("cuts", ["truncations", "truncated"])
@pytest.mark.parametrize("ended", ["terminals", "terminations", "terminated"])
def test_flags_under_gymnasiums_names_are_read(write, blocks, ended, cuts, env):
    fields = walks(LENGTHS)
    del fields["next_observations"], fields["terminals"]
    fields["observations"] = np.pad(fields["observations"], ((0, 0), (0, 1)))  # as wide as Pendulum's
    flags = ends_of(LENGTHS)
    first = np.arange(len(flags)) < LENGTHS[0]
    episodes = load_hdf5(write(fields | {ended: flags & first, cuts: (flags & ~first)[:, None]}, env=env))
    assert episodes.lengths.tolist() == LENGTHS
    assert episodes.terminated.tolist() == [True, False, False, False, False]
    assert episodes.truncated.tolist() == [False, True, True, True, True]
    expected = [] if ended == "terminals" else [f"no terminals: {ended} is read as these"]
    assert remarks(episodes) == [*expected, f"no timeouts: {cuts} is read as these"]


def test_flags_under_two_names_are_told_where_they_differ(write):
    fields = walks(LENGTHS)
    del fields["next_observations"]
    flags = ends_of(LENGTHS)
    fields |= {"terminals": flags & (np.arange(64) < 9), "timeouts": flags & (np.arange(64) >= 9)}
    # The same but for a row that is a terminal anyway; and one that holds no flags.
    same = {"terminated": fields["terminals"], "truncated": flags, "truncations": np.arange(64)}
    assert remarks(load_hdf5(write(fields | same))) == []

    episodes = load_hdf5(write(fields | {"truncations": np.roll(fields["timeouts"], 1)}))
    assert episodes.lengths.tolist() == LENGTHS
    differ = "timeouts and truncations differ in 8 rows, first in row 0: timeouts is read"
    assert remarks(episodes) == [differ]


def test_another_name_counts_where_it_holds_flags_and_where_timeouts_are_all_false(write):
    fields = walks(LENGTHS)
    del fields["next_observations"]
    flags = ends_of(LENGTHS)
    fields["terminals"] = flags
    counts = {"truncated": np.arange(64)}  # no flags, and terminals are enough
    without = {name: value for name, value in fields.items() if name != "timeouts"}
    assert load_hdf5(write(without | counts)).lengths.tolist() == LENGTHS

    none = np.zeros(64, bool)
    episodes = load_hdf5(write(fields | {"terminals": none, "timeouts": none, "truncations": flags}))
    assert episodes.lengths.tolist() == LENGTHS
    assert remarks(episodes) == ["timeouts are all false: truncations is read as these"]


@pytest.mark.parametrize("env", ["", "Pendulum-v1"])
def test_flags_that_are_not_read_are_told_where_they_show_more_ends(write, env):
    fields = walks(LENGTHS)
    del fields["next_observations"]
    fields["observations"] = np.pad(fields["observations"], ((0, 0), (0, 1)))
    flags = ends_of(LENGTHS)
    told = "no timeouts, and dones is not read: it is true in 3 rows where no episode ends, first in row 27"
    fields["terminals"] = flags & (np.arange(64) < 9)
    assert any(text.startswith(told) for text in remarks(load_hdf5(write(fields | {"dones": flags}, env=env))))

    # None that say nothing more, that are no flags, that are not of steps, or with a field of that name.
    fields |= {"done": fields["terminals"], "truncation_cost": np.full(64, 0.5), "is_last": np.ones(5, bool)}
    fields |= {"terminations": np.ones(5, bool), "infos/dones": flags}
    assert not any("is not read" in text for text in remarks(load_hdf5(write(fields, env=env))))
    assert remarks(load_hdf5(write(fields | {"timeouts": flags, "dones": flags}, env=env))) == []


def test_a_file_without_flags_of_ends_is_refused(write):
    fields = walks(LENGTHS)
    del fields["terminals"]
    with pytest.raises(DatasetError, match="lacks terminals; D4RL's fields are observations, actions"):
        load_hdf5(write(fields | {"terminations": np.zeros(5, bool)}))
