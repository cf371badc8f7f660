"""The doctor says what the training would say, and an environment that cannot start is one line."""

import json
import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from toy import TINY
from unroll.commands import evaluate, inspect, train
from unroll.envs import load_episodes
from unroll.envs.make import make_env
from unroll.errors import EnvError

ABOUT = {key: "a" for key in ("author", "author_email", "code_permalink", "algorithm_name", "description")}
TASKS = {"kettle": 3, "light": 2, "microwave": 1}


class Broken(gym.Env):
    """Is registered, and cannot be made here."""

    def __init__(self, render_mode=None):
        raise RuntimeError("cannot connect to display :0")


class Kitchen(gym.Env):
    """Has a goal for each task that is to be done, all of them by default."""

    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, tasks=tuple(TASKS), render_mode=None):
        def goal():
            return gym.spaces.Dict({task: gym.spaces.Box(-9, 9, (TASKS[task],), np.float32) for task in tasks})

        seen = gym.spaces.Box(-9, 9, (4,), np.float32)
        self.observation_space = gym.spaces.Dict(observation=seen, desired_goal=goal(), achieved_goal=goal())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


class Several(Kitchen):
    action_space = gym.spaces.MultiDiscrete([2, 2])


for name, cls in {"Broken": Broken, "Kitchen": Kitchen, "Several": Several}.items():
    if f"UnrollTest{name}-v0" not in gym.registry:
        gym.register(f"UnrollTest{name}-v0", cls, max_episode_steps=10)


def run(tmp_path, source, *arguments):
    small = [*TINY, "--steps", "2", "--device", "cpu", "--evaluation.episodes", "1"]
    return train.main(["--dataset", source, *small, "--run_dir", str(tmp_path / "run"), *arguments])


def words(capsys):
    printed = capsys.readouterr()
    return " ".join(printed.out.split()), printed.err.strip()


def test_an_environment_that_cannot_start_is_one_line_and_the_training_goes_on(fields, write, tmp_path, capsys):
    path = str(write(fields, env="UnrollTestBroken-v0"))
    line = "UnrollTestBroken-v0: RuntimeError: cannot connect to display :0 (test_faults_doctor.py, line"
    with pytest.raises(EnvError) as error:
        make_env("UnrollTestBroken-v0")
    assert str(error.value).startswith(line)

    assert inspect.main([path]) == 0
    report, _ = words(capsys)
    assert f"no evaluation: {line}" in report
    assert "can be trained on: yes" in report
    assert run(tmp_path, path) == 0
    assert f"no evaluation: {line}" in words(capsys)[0]
    assert evaluate.main([str(tmp_path / "run")]) == 2
    assert words(capsys)[1].startswith(f"unroll evaluate: {line}")


def test_an_environment_that_the_user_names_must_start(fields, write, tmp_path, capsys):
    assert run(tmp_path, str(write(fields)), "--evaluation.env", "UnrollTestBroken-v0") == 2
    error = words(capsys)[1]
    assert error.startswith("unroll train: UnrollTestBroken-v0: RuntimeError")
    assert "\n" not in error


def test_arguments_that_the_user_gives_must_be_right(fields, write, tmp_path, capsys):
    path = str(write(fields | {"actions": fields["actions"][:, :1]}, env="Pendulum-v1"))
    assert run(tmp_path, path, "--evaluation.env_kwargs", "{g: 9.8, colour: red}") == 2
    assert "unexpected keyword argument 'colour'" in words(capsys)[1]


def write_kitchen(tmp_path, said):
    """A set of a kitchen with two of three tasks, whose metadata say these arguments of the environment."""
    space = Kitchen(["kettle", "microwave"]).observation_space
    space.seed(0)
    seen = [space.sample() for _ in range(11)]
    goals = {
        key: {task: np.stack([one[key][task] for one in seen]) for task in seen[0][key]}
        for key in seen[0]
        if "goal" in key
    }
    buffer = EpisodeBuffer(
        id=0,
        observations={"observation": np.stack([one["observation"] for one in seen])} | goals,
        actions=np.zeros((10, 2), np.float32),
        rewards=np.ones(10),
        terminations=np.zeros(10, bool),
        truncations=np.arange(10) == 9,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces = {"observation_space": space, "action_space": Kitchen.action_space}
        minari.create_dataset_from_buffers("unit/kitchen-v0", [buffer], **spaces, **ABOUT)
    path = tmp_path / "minari/unit/kitchen-v0/data/metadata.json"
    spec = {"id": "UnrollTestKitchen-v0", "additional_wrappers": [], "kwargs": said}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env_spec": json.dumps(spec)}))


def test_a_set_of_a_part_of_the_goals_is_evaluated_in_the_environment_that_it_says(tmp_path, capsys):
    write_kitchen(tmp_path, {"tasks": ["kettle", "microwave"]})
    assert load_episodes("minari:unit/kitchen-v0").observation_dim == 4 + 3 + 1
    assert inspect.main(["minari:unit/kitchen-v0"]) == 0
    assert run(tmp_path, "minari:unit/kitchen-v0") == 0
    assert "evaluated in UnrollTestKitchen-v0 with tasks ['kettle', 'microwave']" in words(capsys)[0]


def test_a_set_that_does_not_fit_its_environment_is_trained_on_without_it_and_the_doctor_says_so(
    tmp_path, capsys, caplog
):
    write_kitchen(tmp_path, {})
    line = "8 observations per step, UnrollTestKitchen-v0 has 10, so that is not taken for the set's environment"
    assert inspect.main(["minari:unit/kitchen-v0"]) == 0
    report, _ = words(capsys)
    assert line in report
    assert "can be trained on: yes" in report
    assert run(tmp_path, "minari:unit/kitchen-v0") == 0
    assert line in caplog.text
    assert "no evaluation: the dataset names no environment" in words(capsys)[0]


@pytest.mark.parametrize(
    ("env", "changes", "line"),
    [
        ("UnrollTestKitchen-v0", {}, "observations is 3 wide, UnrollTestKitchen-v0's are 10"),
        (
            "UnrollTestSeveral-v0",
            {"observations": np.zeros((12, 10))},
            "UnrollTestSeveral-v0's are MultiDiscrete([2 2])",
        ),
        ("", {"observations": np.zeros((12, 0))}, "observations is 0 wide"),
        ("", {"actions": np.zeros((12, 0))}, "actions is 0 wide"),
    ],
)
def test_what_the_training_refuses_the_doctor_refuses(fields, write, tmp_path, capsys, env, changes, line):
    path = str(write(fields | changes, env=env))
    assert inspect.main([path]) == 2
    assert line in words(capsys)[0]
    assert run(tmp_path, path) == 2
    assert line in words(capsys)[1]


def test_a_wide_box_is_one_line_wherever_it_is_named(fields, write, tmp_path, capsys):
    wide = {"actions": np.linspace(-3, 3, 12 * 30).reshape(12, 30)}
    assert run(tmp_path, str(write(fields | wide))) == 0
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run"), "--env", "CartPole-v1"]) == 2
    assert len(words(capsys)[1].splitlines()) == 1
    fields["observations"] = np.zeros((12, 4))
    assert run(tmp_path, str(write(fields | wide)), "--evaluation.env", "CartPole-v1") == 2
    assert len(words(capsys)[1].splitlines()) == 1
