"""Environments from an id, and what make_env and its wrappers put into an observation."""

from __future__ import annotations

import sys
from multiprocessing import forkserver

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.utils.env_checker import check_env

from unroll.commands import export, train
from unroll.envs.make import _log_warning, _make_one, find_env, make_env, make_vec_env
from unroll.envs.own import import_env, registered_id
from unroll.envs.wrappers import PreviousStep, ReturnToGo
from unroll.errors import EnvError

GOAL = gym.spaces.Dict(
    observation=gym.spaces.Box(-1, 1, (2,), np.float32),
    desired_goal=gym.spaces.Box(-1, 1, (1,), np.float32),
    achieved_goal=gym.spaces.Box(-1, 1, (1,), np.float32),
)
IMAGE = gym.spaces.Box(0, 255, (5, 4, 3), np.uint8)
SPACES = {
    "row": gym.spaces.Box(-1, 1, (2,), np.float32),
    "matrix": gym.spaces.Box(-1, 1, (2, 3), np.float32),
    "goal": GOAL,
    "image": IMAGE,
    "image and numbers": gym.spaces.Dict(image=IMAGE, speed=gym.spaces.Box(-1, 1, (1,), np.float32)),
}
ACTIONS = {
    "discrete": gym.spaces.Discrete(3),
    "shifted": gym.spaces.Discrete(3, start=2),
    "several": gym.spaces.MultiDiscrete([2, 4]),
    "binary": gym.spaces.MultiBinary(3),
    "box": gym.spaces.Box(np.float32([-1, 2]), np.float32([1, 5])),
    "integers": gym.spaces.Box(0, 255, (2,), np.uint8),
}


class Samples(gym.Env):
    """Observations are samples; the reward of step t is t, the episode ends after three steps."""

    def __init__(self, observation="row", action="discrete"):
        self.observation_space = observation if isinstance(observation, gym.Space) else SPACES[observation]
        self.action_space = ACTIONS.get(action, gym.spaces.Tuple([gym.spaces.Discrete(2)]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(self.t), self.t == 3, False, {}

    def action_masks(self):
        return np.array([True, False, self.t > 0])


if "UnrollTestSamples-v0" not in gym.registry:
    gym.register("UnrollTestSamples-v0", Samples)


def make(**kwargs):
    return make_env("UnrollTestSamples-v0", **kwargs)


@pytest.mark.parametrize(
    ("observation", "width"), [("row", 2), ("matrix", 6), ("goal", 3), ("image", 60), ("image and numbers", 61)]
)
def test_an_observation_is_one_row_and_what_was_done_stands_at_its_end(observation, width):
    assert make(observation=observation).observation_space.shape == (width,)
    env = make(observation=observation, previous_action=True, previous_reward=True)
    assert env.observation_space.shape == (width + 4 + 1,)
    first = env.reset(seed=0)[0]
    second = env.step(1)[0]
    np.testing.assert_array_equal(first[:width], make(observation=observation).reset(seed=0)[0])
    assert first[width:].tolist() == [0, 0, 0, 1, 0]
    assert second[width:].tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("observation", ["image", "image and numbers"])
def test_an_image_stays_an_image_where_it_is_asked_for(observation):
    assert make(observation=observation, images=True).observation_space == SPACES[observation]
    env = make(observation=observation, images=True, previous_action=True, previous_reward=True)
    keys = ["observation"] if observation == "image" else ["image", "speed"]
    assert sorted(env.observation_space) == sorted([*keys, "previous_action", "previous_reward"])
    assert env.observation_space[keys[0]] == IMAGE
    shown = env.reset(seed=0)[0]
    assert env.observation_space.contains(shown)
    assert shown["previous_action"] == 3


def test_a_vector_of_no_environment_is_refused():
    with pytest.raises(EnvError, match="n_envs 0"):
        make_vec_env("CartPole-v1", n_envs=0)


def test_who_asks_for_images_gets_flat_rows_where_there_are_none():
    assert make(observation="goal", images=True).observation_space.shape == (3,)


@pytest.mark.parametrize("observation", SPACES)
@pytest.mark.parametrize("action", ACTIONS)
def test_the_previous_step_is_that_of_this_episode(action, observation):
    env = PreviousStep(Samples(observation, action))
    env.action_space.seed(0)
    start = getattr(env.action_space, "start", 0)
    none = {"discrete": 3, "shifted": 3, "several": [2, 4], "binary": [0] * 3, "box": [0, 0], "integers": [0, 0]}
    for _ in range(2):
        shown, _ = env.reset(seed=1)
        np.testing.assert_array_equal(shown["previous_action"], none[action])
        assert shown["previous_reward"].tolist() == [0]
        for t in range(1, 4):
            assert env.observation_space.contains(shown)
            done = env.action_space.sample()
            shown, reward, *_ = env.step(done)
            np.testing.assert_array_equal(shown["previous_action"], np.asarray(done) - start)
            assert shown["previous_reward"].tolist() == [reward] == [t]
        assert env.observation_space.contains(shown)


def test_an_action_is_shown_as_it_was_even_if_its_array_changes():
    env = PreviousStep(Samples("row", "box"), reward=False)
    env.reset(seed=0)
    action = np.float32([0.5, 3])
    shown = env.step(action)[0]
    action[:] = 0
    assert shown["previous_action"].tolist() == [0.5, 3]
    assert "previous_reward" not in shown


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")  # rewards have no bounds
@pytest.mark.parametrize("action", ["discrete", "several", "binary"])
def test_gymnasiums_checker_has_no_complaint_about_the_previous_step(action):
    check_env(PreviousStep(Samples("row", action)), skip_render_check=True)


def test_the_previous_step_begins_anew_when_a_vector_resets_an_environment():
    env = make_vec_env("UnrollTestSamples-v0", 2, previous_action=True, previous_reward=True)
    assert env.reset()[:, 2:].tolist() == [[0, 0, 0, 1, 0]] * 2
    for t in range(1, 7):
        observations, _, dones, infos = env.step(np.array([0, 2]))
        row = [[1, 0, 0, 0, 1 + (t - 1) % 3], [0, 0, 1, 0, 1 + (t - 1) % 3]]
        assert dones.tolist() == [t % 3 == 0] * 2
        assert observations[:, 2:].tolist() == ([[0, 0, 0, 1, 0]] * 2 if t % 3 == 0 else row)
        if t % 3 == 0:
            assert [info["terminal_observation"][2:].tolist() for info in infos] == row


@pytest.mark.parametrize("wrapper", [PreviousStep, ReturnToGo])
def test_an_action_that_cannot_be_shown_is_refused_in_one_line(wrapper):
    with pytest.raises(EnvError, match=r"^Samples: an action of Tuple cannot be shown in the step after it$"):
        wrapper(Samples("row", "tuple"))
    with pytest.raises(EnvError, match=r"^UnrollTestSamples-v0: an action of Tuple"):
        make(action="tuple", previous_action=True)


@pytest.mark.parametrize("images", [False, True])
def test_action_masks_are_within_reach(images):
    kwargs = dict(observation="image", previous_action=True, images=images)
    env = make(**kwargs)
    env.reset(seed=0)
    assert env.get_wrapper_attr("action_masks")().tolist() == [True, False, False]
    vector = make_vec_env("UnrollTestSamples-v0", 2, **kwargs)
    vector.reset()
    vector.step(np.array([0, 2]))
    assert np.stack(vector.env_method("action_masks")).tolist() == [[True, False, True]] * 2


def test_a_wrong_argument_of_an_environment_is_one_line():
    with pytest.raises(EnvError, match=r"^TMaze-v0: length is 0, a corridor has at least one step$"):
        make_env("TMaze-v0", length=0)
    with pytest.raises(EnvError, match=r"^TMaze-v0: length is 0, a corridor has at least one step$"):
        make_env("TMaze-v0", env_kwargs={"length": 0})


@pytest.mark.parametrize(
    ("env_id", "package", "hint"),
    [
        ("popgym-RepeatFirstEasy-v0", "popgym", r"it comes with popgym: pip install 'unroll-rl\[popgym\]'"),
        (
            "AdroitHandDoor-v9",
            "gymnasium_robotics",
            r"it comes with gymnasium-robotics: pip install 'unroll-rl\[robotics\]'",
        ),
        ("MiniGrid-MemoryS7-v0", "minigrid", r"it comes with minigrid: pip install 'unroll-rl\[minigrid\]'"),
    ],
)
def test_an_environment_of_a_package_that_is_missing_says_how_to_install_it(env_id, package, hint, monkeypatch):
    monkeypatch.delitem(gym.registry, env_id, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvError, match=hint):
        find_env(env_id)


def test_popgyms_environments_are_found_by_their_id():
    pytest.importorskip("popgym")
    vector = make_vec_env("popgym-AutoencodeEasy-v0", 2, previous_action=True)
    assert vector.observation_space.shape == (2 + 4 + 5,)
    vector.reset()
    vector.step(np.array([0, 1]))
    assert make_env("popgym-BattleshipEasy-v0", previous_action=True).observation_space.shape == (2 + 9 + 9,)
    with pytest.raises(EnvError, match="did you mean popgym-AutoencodeEasy-v0"):
        find_env("popgym-AutoencodeEsy-v0")


TEXTS = {
    "one text": gym.spaces.Dict(mission=gym.spaces.Text(9), row=SPACES["row"]),
    "two texts": gym.spaces.Dict(a=gym.spaces.Text(3), image=IMAGE, b=gym.spaces.Text(3)),
    "text alone": gym.spaces.Text(3),
    "a dict of texts": gym.spaces.Dict(a=gym.spaces.Text(3)),
}


def test_texts_of_a_dict_are_left_out_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr("unroll.envs.make._TOLD", set())
    vector = make_vec_env("UnrollTestSamples-v0", 2, observation=TEXTS["one text"])
    assert vector.reset().shape == (2, 2)
    assert caplog.text.count("UnrollTestSamples-v0: mission is text and left out: a policy reads numbers") == 1


def test_one_process_of_a_vector_says_it_for_all(monkeypatch, caplog):
    for tells in (False, True):
        monkeypatch.setattr("unroll.envs.make._TOLD", set())  # as in a new process
        _make_one(gym.spec("UnrollTestSamples-v0"), None, "it", {"observation": TEXTS["one text"]}, tells)
        assert ("mission is text" in caplog.text) == tells


def test_what_is_left_beside_texts_is_shown_as_ever(monkeypatch, caplog):
    monkeypatch.setattr("unroll.envs.make._TOLD", set())
    env = make(observation=TEXTS["two texts"], images=True, previous_reward=True)
    assert sorted(env.observation_space) == ["image", "previous_reward"]
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert "UnrollTestSamples-v0: a and b are text and left out" in caplog.text


@pytest.mark.parametrize("observation", ["text alone", "a dict of texts"])
def test_an_environment_that_shows_text_alone_is_refused(observation):
    with pytest.raises(
        EnvError, match=r"^UnrollTestSamples-v0: shows text alone, of which a wrapper must make numbers$"
    ):
        make(observation=TEXTS[observation])


def test_minigrids_environments_are_found_by_their_id():
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    env = make_env("MiniGrid-MemoryS7-v0", images=True)
    assert sorted(env.observation_space) == ["direction", "image"]
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert make_env("MiniGrid-MemoryS7-v0", previous_action=True).observation_space.shape == (4 + 7 * 7 * 3 + 8,)
    assert make_env("MiniGrid-MemoryS7-v0", env_kwargs={"size": 9}).unwrapped.width == 9
    with pytest.raises(EnvError, match="did you mean MiniGrid-MemoryS7-v0"):
        find_env("MiniGrid-MemoryS77-v0")


class Unstable(InvertedPendulumEnv):
    """A simulation that breaks in every step; registered under a name that says nothing of MuJoCo."""

    def step(self, action):
        self.data.qvel[:] = 1e20
        return super().step(action)


if "UnrollTestUnstable-v0" not in gym.registry:
    gym.register("UnrollTestUnstable-v0", Unstable)


@pytest.mark.parametrize("processes", [False, True])
def test_a_warning_of_mujoco_is_shown_once_and_leaves_no_file(processes, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unroll.envs.make._SHOWN", set())
    if processes:
        # Workers write where their server does, and one of an earlier test writes where that test was captured.
        forkserver._forkserver._stop()
    vector = make_vec_env("UnrollTestUnstable-v0", processes=processes)
    vector.reset()
    for _ in range(3):
        vector.step(np.zeros((1, 1)))
    vector.close()
    shown = capfd.readouterr().err if processes else caplog.text
    assert shown.count("MuJoCo: Nan, Inf or huge value in QVEL") == 1
    assert not list(tmp_path.iterdir())


def test_every_kind_of_warning_is_shown(caplog, monkeypatch):
    monkeypatch.setattr("unroll.envs.make._SHOWN", set())
    for message in (
        "bad QVEL at DOF 0. Time = 1e-05.",
        "bad QVEL at DOF 3. Time = 0.2.",
        "bad QACC at DOF 0. Time = 0.",
    ):
        _log_warning(message)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_mujocos_warnings_go_to_the_log_before_there_is_a_model(monkeypatch):
    happened = []
    monkeypatch.setattr("mujoco.set_mju_user_warning", lambda handler: happened.append("handler"))
    monkeypatch.setattr(gym, "make", lambda env_id: happened.append(env_id) or Samples())
    make_env("Pusher-v5")
    assert happened == ["handler", "Pusher-v5"]


def test_arguments_of_an_environment_reach_it_in_any_process():
    assert make_env("TMaze-v0", env_kwargs={"length": 3}).unwrapped.length == 3
    for processes in (False, True):
        vector = make_vec_env("TMaze-v0", 2, processes=processes, env_kwargs={"length": 3})
        assert vector.get_attr("length") == [3, 3]
        vector.close()


@pytest.mark.parametrize("wrong", [{"lenght": 3}, {"id": "CartPole-v1"}, {3: 3}])
def test_an_argument_that_an_environment_does_not_have_is_one_line(wrong):
    with pytest.raises(EnvError, match=r"^TMaze-v0: [^\n]*(lenght|'id'|strings)[^\n]*$"):
        make_env("TMaze-v0", env_kwargs=wrong)


NAMES = ("UnrollTestOwn-v0", "UnrollTestOwnClass-v0")  # registered by a text and by the class itself
OWN = """
import gymnasium as gym
import numpy as np


class Own(gym.Env):
    def __init__(self, size=2):
        self.observation_space = gym.spaces.Box(-1, 1, (size,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.high.copy(), 1.0, False, False, {}


gym.register("UnrollTestOwn-v0", "unroll_test_own:Own")
gym.register("UnrollTestOwnClass-v0", Own)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "unroll_test_own.py").write_text(OWN)
    (tmp_path / "unroll_test_broken.py").write_text("import unroll_test_absent")
    (tmp_path / "unroll_test_exits.py").write_text("raise SystemExit('no\\nlicense')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("unroll_test_own", None)
    for name in NAMES:
        gym.registry.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_of_a_module_is_made_in_any_process_once_its_module_is_imported(own, name):
    with pytest.raises(EnvError, match="is not registered"):
        make_env(name)
    assert import_env(f"unroll_test_own:{name}") == name
    for processes in (False, True):
        vector = make_vec_env(name, 2, processes=processes, env_kwargs={"size": 3})
        assert vector.reset().shape == (2, 3)
        vector.close()


def test_a_run_in_an_environment_of_the_users_own_is_exported_where_the_command_line_names_it(own, capsys, monkeypatch):
    name = "unroll_test_own:UnrollTestOwn-v0"
    small = ["--n_envs", "1", "--n_steps", "4", "--batch_size", "4", "--steps", "4", "--evaluation.episodes", "0"]
    arguments = ["--agent", "ppo", "--env", name, *small, "--backbone.d_model", "8", "--device", "cpu"]
    assert train.main([*arguments, "--run_dir", "run"]) == 0
    sys.modules.pop("unroll_test_own")  # as in another process
    for registered in NAMES:
        gym.registry.pop(registered)
    capsys.readouterr()
    assert export.main(["run", "--format", "pt2"]) == 2
    assert "name it on the command line" in capsys.readouterr().err
    exported = []
    monkeypatch.setattr("unroll.export.write_export", lambda step, *_: exported.append(step) or 0.0)
    assert export.main(["run", "--format", "pt2", "--env", name]) == 0
    assert len(exported) == 1


def test_a_name_is_resolved_without_an_import(own):
    assert registered_id("CartPole-v1") == "CartPole-v1"
    with pytest.raises(EnvError, match="is not imported, and no file may ask for that"):
        registered_id("unroll_test_own:UnrollTestOwn-v0")
    assert "unroll_test_own" not in sys.modules
    import_env("unroll_test_own:UnrollTestOwn-v0")
    assert registered_id("unroll_test_own:UnrollTestOwn-v0") == "UnrollTestOwn-v0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unroll_test_none:X-v0", "there is no module unroll_test_none in this folder, nor installed"),
        ("unroll_test_own.none:X-v0", "there is no module unroll_test_own.none in this folder, nor installed"),
        ("unroll_test_broken:X-v0", "importing unroll_test_broken raised ModuleNotFoundError: No module named"),
        ("unroll_test_exits:X-v0", "importing unroll_test_exits raised SystemExit: no license"),
        ("unroll_test_own:UnrollTestOwn-v2", "unroll_test_own registers no UnrollTestOwn-v2"),
        ("unroll_test_own:", "one of your own is module:id"),
        ("../own:X-v0", "one of your own is module:id"),
        (":X-v0", "one of your own is module:id"),
    ],
)
def test_a_module_that_cannot_be_imported_or_lacks_the_environment_is_one_line(own, name, message):
    with pytest.raises(EnvError) as error:
        import_env(name)
    assert str(error.value).startswith(f"environment {name!r}: " if "own is" in message else f"environment {name}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_but_import_env_imports_a_module(own):
    for function in (make_env, make_vec_env, find_env):
        with pytest.raises(EnvError, match="without a module"):
            function("unroll_test_own:UnrollTestOwn-v0")
    assert "unroll_test_own" not in sys.modules
