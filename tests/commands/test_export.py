"""unroll export: the exported step is the policy, for every backbone and both agents, and runs without PyTorch."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks.export import Row, largest_difference
from ppo_runs import NORMALIZED, agent_of, assert_one_line, exit_code, saved
from toy import SMALL, Toy, make_agent, toy_episodes
from toy import TINY as DECISION
from unroll.agents import AGENTS, DecisionAgent
from unroll.agents.common import checkpoint
from unroll.agents.decision.step import DecisionStep
from unroll.agents.ppo.player import PPOActor
from unroll.agents.ppo.step import ActorStep
from unroll.commands import evaluate, export, train
from unroll.envs import load_episodes
from unroll.envs.datasets.recording import write_hdf5
from unroll.envs.make import make_env
from unroll.envs.wrappers import ReturnToGo
from unroll.errors import CheckpointError
from unroll.export.check import difference
from unroll.export.folder import how_to_play
from unroll.export.formats import NEEDED, trace, write_step
from unroll.export.play import main as play_main
from unroll.export.play import play
from unroll.export.runner import Policy
from unroll.policies.backbones import BACKBONES, Mixer

STEPS, CLOSE = 30, 1e-5
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason=f"{', '.join(NEEDED)} are not all installed: pip install 'unroll-rl[export]'",
)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small_agent(discrete=False, timestep_embedding=False, **policy):
    """One layer: an export takes as long as the policy has operations."""
    policy = dict(d_model=8, n_layers=1) | policy
    return DecisionAgent(
        toy_episodes(6, discrete),
        context=6,
        timestep_embedding=timestep_embedding,
        device="cpu",
        policy_kwargs=policy,
    )


def all_of_which_fast(*names):
    """Every backbone; an export takes seconds, so that of each agent some are checked by default and all by -m slow."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in BACKBONES]


@needs_onnx
@pytest.mark.parametrize("name", all_of_which_fast("mingru", "transformer"))
def test_an_exported_decision_agent_is_the_agent(name):
    """Half of them with discrete actions."""
    agent = small_agent(discrete=list(BACKBONES).index(name) % 2 == 1, backbone=name)
    agent.save("run")
    assert export.main(["run"]) == 0
    for batch in (1, 8):
        row = Row(lambda: ReturnToGo(make_env(agent.task["env"])), batch, target=5.0)
        assert largest_difference(agent, Policy("run/onnx", batch), row, STEPS) <= CLOSE


@needs_onnx
@pytest.mark.parametrize("name", all_of_which_fast("lstm", "mamba"))
def test_an_exported_actor_of_ppo_is_the_actor(name):
    """Half of them with continuous actions, all under VecNormalize."""
    env = ["CartPoleNoVel-v1", "PendulumNoVel-v1"][list(BACKBONES).index(name) % 2]
    agent, config = agent_of("--env", env, "--backbone.name", name, *NORMALIZED)
    saved(agent, config, "run")
    assert export.main(["run"]) == 0
    actor = PPOActor(agent, agent.get_vec_normalize_env())
    for batch in (1, 8):
        assert largest_difference(actor, Policy("run/onnx", batch), Row(lambda: make_env(env), batch), STEPS) <= CLOSE


SPACES = {
    "action masks": ("ToyMasked-v0", []),
    "images": ("ToyPicture-v0", []),
    "a Dict with an image": ("ToyPicture-v0", ["--previous_action", "true", "--previous_reward", "true", *NORMALIZED]),
    "several actions": ("ToySeveral-v0", ["--separate_critic", "false", *NORMALIZED]),
    "gSDE": ("ToyBox-v0", ["--use_sde", "true"]),
}


@pytest.mark.parametrize("kind", SPACES)
def test_other_observations_and_actions_are_exported_too(kind):
    env, flags = SPACES[kind]
    agent, config = agent_of("--env", env, *flags)
    saved(agent, config, "run")
    assert export.main(["run", "--format", "pt2"]) == 0
    actor = PPOActor(agent, agent.get_vec_normalize_env())
    wrappers = dict(previous_action=config.previous_action, previous_reward=config.previous_reward, images=True)
    row = Row(lambda: make_env(env, **wrappers), 3)
    assert largest_difference(actor, Policy("run/pt2", 3), row, STEPS) <= CLOSE


def test_masks_of_bits_are_exported_too():
    agent, config = agent_of("--env", "ToyMaskedBits-v0")
    saved(agent, config, "run")
    assert export.main(["run", "--format", "pt2"]) == 0
    row = Row(lambda: make_env("ToyMaskedBits-v0"), 3)
    masks = {"action_masks": np.array([[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1]], bool)}
    found = Policy("run/pt2", 3)({"observation": row(), "reset": row.start} | masks)
    actions, _ = agent.predict(row(), deterministic=True, **masks)
    np.testing.assert_array_equal(found, actions)
    assert found[:, 0].tolist()[:2] == [0, 1]


@needs_onnx
@pytest.mark.parametrize(
    "options",
    [
        dict(backbone="mingru", backbone_options=dict(conv=3, learned_initial_state=True, highway=True)),
        dict(backbone="transformer", backbone_options=dict(window=1, positions="none")),
        dict(backbone="gru", tokens="interleaved", timestep_embedding=True),
    ],
    ids=["an initial state that is not zeros", "a state that holds nothing", "three tokens a step"],
)
def test_options_that_change_the_step_are_exported_too(options):
    agent = small_agent(**options)
    agent.save("run")
    assert export.main(["run"]) == 0
    row = Row(lambda: ReturnToGo(make_env("ToyBox-v0")), 3, target=5.0)
    assert largest_difference(agent, Policy("run/onnx", 3), row, STEPS) <= CLOSE


@needs_onnx
def test_gates_that_are_shut_are_exported_too():
    import onnxruntime

    step = DecisionStep(small_agent(backbone="minlstm").policy)
    with torch.no_grad():
        for parameter in step.parameters():  # pre-activations of hundreds
            parameter.mul_(20)
    write_step(step, "onnx", Path("policy.onnx"))
    session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
    assert difference(step, lambda shown: session.run(None, shown)) <= CLOSE


def test_a_policy_takes_only_what_it_looks_at():
    agent = make_agent(condition="none", previous_action=False)
    assert [port.name for port in DecisionStep(agent.policy).shown] == ["observation"]
    agent = make_agent(timestep_embedding=True, condition="best")
    names = [port.name for port in DecisionStep(agent.policy).shown]
    assert names == ["observation", "previous_action", "return_to_go", "timestep"]


def test_the_check_sees_a_step_that_is_another():
    one, other = (DecisionStep(make_agent(seed=seed).policy) for seed in (0, 1))
    names = [port.name for port in one.inputs]

    def run(feed):
        with torch.no_grad():
            return [part.numpy() for part in other(*(torch.from_numpy(feed[name]) for name in names))]

    assert difference(one, run) > 1e-2
    other = one
    assert difference(one, run) == 0


@needs_onnx
def test_the_runner_plays_the_episodes_of_evaluate_without_pytorch():
    """And without this project, in an environment of Gymnasium's own."""
    saved(*agent_of("--env", "CartPole-v1", "--backbone.name", "gru", *NORMALIZED), "run")
    assert evaluate.main(["run", "--episodes", "4"]) == 0
    wanted = json.loads(Path("run/evaluation.json").read_text())
    assert export.main(["run"]) == 0
    code = f"""
import json, sys
sys.modules.update(dict.fromkeys(("torch", "stable_baselines3", "agents", "deploy")))
sys.path[:0] = ["run/onnx"]
import gymnasium, play, run
policy, env = run.Policy(), gymnasium.make("CartPole-v1")
print(json.dumps([play.play(policy, env, seed=seed) for seed in {wanted["seeds"]}]))
"""
    assert json.loads(run_python("-c", code)) == wanted["results"][0]["returns"]
    assert "µs per step" in run_python("run/onnx/play.py")
    assert "return " in run_python("run/onnx/play.py", "CartPole-v1")
    done = subprocess.run([sys.executable, "run/onnx/play.py", "CartPolNoVel-v1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"play.py: Environment `CartPolNoVel`.*; the policy learned in CartPole-v1\n", done.stderr)


OWN = """
import gymnasium

def make(length=1):
    return gymnasium.make("CartPole-v1", max_episode_steps=length)

gymnasium.register("ExportedOwn-v0", make)
"""


class Pushing:
    """Stands for an exported policy that follows no return, of an environment of its author's own."""

    def __init__(self):
        self.about = {"env": "my_own:ExportedOwn-v0", "env_kwargs": {"length": 3}, "first_action": 0}
        self.about["keeps_memory"] = False
        self.zeros = {"observation": np.zeros((1, 4))}

    def __call__(self, row):
        return np.zeros(1, np.int64)


def test_play_finds_a_module_in_the_folder_where_it_is_typed_and_keeps_the_arguments(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "run", SimpleNamespace(Policy=Pushing))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("my_own.py").write_text(OWN)
    for name in ("my_own:ExportedOwn-v0", "ExportedOwn-v0"):
        play_main([name])
        assert capsys.readouterr().out == "return 3.0\n"


def test_play_refuses_a_return_for_a_policy_that_follows_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "run", SimpleNamespace(Policy=Pushing))
    with pytest.raises(SystemExit, match="follows no return, so it cannot be asked for 50"):
        play_main(["CartPole-v1", "50"])


def test_play_refuses_a_policy_that_observes_more_than_the_environment_shows(monkeypatch):
    policy = Pushing()
    policy.about["wrappers"] = ["previous_action"]
    monkeypatch.setitem(sys.modules, "run", SimpleNamespace(Policy=lambda: policy))
    with pytest.raises(SystemExit, match="observes previous_action too"):
        play_main(["CartPole-v1"])


class Following(Pushing):
    """Stands for one that follows a return."""

    def __init__(self, default=70.5):
        super().__init__()
        self.about["default_target"] = default
        self.zeros["return_to_go"] = np.zeros(1)

    def __call__(self, row):
        print("to go", *row["return_to_go"])
        return super().__call__(row)


def test_play_says_which_return_it_asks_for(monkeypatch, capsys):
    unlimited = float(np.finfo(np.float32).max)
    for default, given, words in (
        (70.5, [], "a return of 70.5"),
        (70.5, ["-3"], "a return of -3"),
        (unlimited, [], "the"),
    ):
        monkeypatch.setitem(sys.modules, "run", SimpleNamespace(Policy=lambda default=default: Following(default)))
        play_main(["CartPole-v1", *given])
        said, first, *_ = capsys.readouterr().out.splitlines()
        assert said.startswith(f"asked for {words}")
        assert float(first.removeprefix("to go ")) == float(given[0] if given else default)


def test_an_agent_that_follows_a_return_is_asked_for_the_largest_that_evaluate_asks_for():
    small_agent(condition="return").save("run")
    assert evaluate.main(["run", "--episodes", "1"]) == 0
    wanted = json.loads(Path("run/evaluation.json").read_text())["results"]
    assert len(wanted) == 3
    _, facts = AGENTS["decision"].step(Path("run"), None)
    assert facts["default_target"] == max(result["target_return"] for result in wanted)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("Hopper-v5", "play.py Hopper-v5    # plays an episode; needs gymnasium too"),
        ("TMaze-v0", "play.py unroll.envs.make:TMaze-v0    # plays an episode; needs gymnasium and unroll too"),
        (
            "popgym-AutoencodeEasy-v0",
            "play.py popgym:popgym-AutoencodeEasy-v0    # plays an episode; needs gymnasium and",
        ),
        ("my.own:A-v0", "play.py my.own:A-v0    # plays an episode; needs gymnasium and my too"),
    ],
)
def test_the_description_says_which_module_registers_an_environment(env, words):
    assert words in how_to_play({"env": env, "wrappers": [], "inputs": []})
    if env == "TMaze-v0":
        assert gym.make("unroll.envs.make:TMaze-v0").spec.id == env


def run_python(*words):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_memory_task_is_played_as_by_evaluate():
    saved(*agent_of("--env", "TMaze10-v0", "--backbone.name", "transformer"), "run")
    assert evaluate.main(["run", "--episodes", "4"]) == 0
    wanted = json.loads(Path("run/evaluation.json").read_text())
    assert export.main(["run", "--format", "pt2"]) == 0
    returns = [play(Policy("run/pt2"), make_env("TMaze10-v0"), seed=seed) for seed in wanted["seeds"]]
    assert returns == pytest.approx(wanted["results"][0]["returns"])


def test_the_runner_asks_a_decision_agent_as_evaluate_does():
    small_agent(condition="best").save("run")
    assert evaluate.main(["run", "--episodes", "2", "--targets", "3", "-4.5"]) == 0
    wanted = json.loads(Path("run/evaluation.json").read_text())
    assert export.main(["run", "--format", "pt2"]) == 0
    policy = Policy("run/pt2")
    for result in wanted["results"]:
        returns = [play(policy, make_env("ToyBox-v0"), result["target_return"], seed) for seed in wanted["seeds"]]
        assert returns == pytest.approx(result["returns"], abs=1e-4)


def test_the_runner_cuts_actions_at_the_bounds_as_evaluate_does():
    """The toy pays the action that it is given, up to 2; the policy is shown what it chose."""
    shown = []

    class Eager:
        def __init__(self):
            self.about = {"first_action": np.zeros(1, np.float32), "keeps_memory": False}
            self.zeros = {"previous_action": np.zeros((1, 1), np.float32)}
            self.state = ()

        def __call__(self, row):
            shown.append(row["previous_action"].item())
            return np.full((1, 1), 5, np.float32)

    assert play(Eager(), make_env("ToyBox-v0")) == 2 * 12
    assert shown == [0] + [5] * 11


class Counted(Toy):
    """Takes whole numbers alone, and says which they were."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(-1, 2, (1, 1), np.int8)

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


gym.register("ExportedWhole-v0", Counted, disable_env_checker=True)


@pytest.mark.parametrize("kind", ["trained", "before"])
def test_an_exported_decision_agent_gives_whole_numbers_where_evaluate_does(kind):
    """Whoever has not trained in a run has the environment of the dataset, as checkpoints of before do."""
    if kind == "trained":
        write_hdf5(replace(toy_episodes(6), env_id=None), "toy.hdf5")
        own = ["--evaluation.env", "ExportedWhole-v0", "--evaluation.episodes", "3"]
        assert train.main(["--dataset", "toy.hdf5", *DECISION, "--steps", "2", "--run_dir", "run", *own]) == 0
        agent = DecisionAgent.load("run")
    else:
        agent = DecisionAgent(replace(toy_episodes(6), env_id="ExportedWhole-v0"), device="cpu", policy_kwargs=SMALL)
        agent.save("run")
        assert evaluate.main(["run", "--episodes", "3"]) == 0
    assert ("whole_actions" in agent.task) == (kind == "trained")
    wanted = json.loads(Path("run/evaluation.json").read_text())
    assert export.main(["run", "--format", "pt2"]) == 0
    policy, given = Policy("run/pt2"), []
    env = make_env("ExportedWhole-v0")
    returns = [play(policy, env, None, seed, lambda _, action: given.append(action)) for seed in wanted["seeds"]]
    assert returns == wanted["results"][0]["returns"]
    assert {action.dtype for action in given} == {np.dtype(np.int8)}


@pytest.mark.parametrize("whole", [{"dtype": "int8", "low": [0, 0], "high": [1, 1]}, {"dtype": "float32"}])
def test_a_checkpoint_whose_whole_numbers_are_not_those_of_its_policy_is_refused(whole):
    agent = small_agent()
    agent.task["whole_actions"] = {"type": "Box", "low": [0], "high": [1]} | whole
    agent.save("run")
    with pytest.raises(CheckpointError, match="no Box of integers for this policy"):
        DecisionAgent.load("run")


def test_whole_numbers_are_within_the_bounds_of_the_environment():
    step = DecisionStep(small_agent().policy, {"type": "Box", "low": [0], "high": [1], "dtype": "uint8"})
    for bias, bound in ((-100, 0), (100, 1)):  # the policy's own bounds are -2 and 2
        torch.nn.init.constant_(step.policy.action.head.bias, bias)
        action, *_ = step(*(port.zeros(2) for port in step.inputs))
        assert (action.dtype, action.tolist()) == (torch.uint8, [[bound], [bound]])


@needs_onnx
def test_an_exported_agent_walks_as_the_agent_does_on_hopper():
    """The same actions: returns would tell the last bit of a float apart after a while."""
    data = load_episodes("embedded:hopper-v5-replay")
    policy_kwargs = dict(d_model=16, n_layers=1, condition="best")
    agent = DecisionAgent(data, device="cpu", policy_kwargs=policy_kwargs)
    agent.save("run")
    assert export.main(["run"]) == 0
    heard = []
    play(Policy("run/onnx"), gym.make("Hopper-v5"), 3600.0, 0, lambda shown, action: heard.append((shown, action)))
    state = None
    for shown, action in heard:
        seen = shown | {"return_to_go": shown["return_to_go"][:, None], "timestep": np.zeros((1, 1), np.int64)}
        seen["previous_action"] = np.float32(shown["previous_action"])
        expected, state = agent.predict(seen, state, shown["reset"])
        assert np.abs(action - expected[0]).max() <= CLOSE
    assert len(heard) > 10


def test_a_memory_that_outlives_episodes_is_kept_by_the_runner():
    agent, config = agent_of("--env", "ToyBox-v0", "--reset_on_done", "false", "--backbone.name", "lstm")
    saved(agent, config, "run")
    assert export.main(["run", "--format", "pt2"]) == 0
    policy, resets = Policy("run/pt2"), []
    for _ in range(2):
        play(policy, make_env("ToyBox-v0"), seed=0, on_step=lambda shown, _: resets.append(bool(shown["reset"][0])))
    assert resets == [True] + [False] * (len(resets) - 1)


def test_an_export_is_described_and_names_no_path_of_this_machine(tmp_path, capsys):
    small_agent().save("runs/a/checkpoints/step_00000000")
    assert export.main(["runs/a", "--format", "pt2"]) == 0
    folder = tmp_path / "runs/a/pt2"
    assert str(folder / "play.py") in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"policy.pt2", "policy.json", "README.md", "run.py", "play.py"}
    about = json.loads((folder / "policy.json").read_text())
    assert about["source"]["checkpoint"] == "step_00000000"
    assert {entry["name"]: entry["shape"] for entry in about["inputs"]}["state_0"] == ["batch", 8]
    assert [entry["name"] for entry in about["outputs"]][:2] == ["action", "next_state_0"]
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_only_an_export_is_replaced(tmp_path, capsys):
    make_agent(seed=1).save("run")
    assert export.main(["run", "--format", "pt2", "--output", "out"]) == 0
    before = (tmp_path / "out/policy.pt2").read_bytes()
    make_agent(seed=2).save("run")
    assert export.main(["run", "--format", "pt2", "--output", "out"]) == 0
    assert (tmp_path / "out/policy.pt2").read_bytes() != before
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    for output in ("out", "file", "run"):
        assert export.main(["run", "--format", "pt2", "--output", output]) == 2
        assert_one_line(capsys, "exists and is not an exported policy")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_wrong_export_leaves_nothing(monkeypatch, capsys, tmp_path):
    small_agent().save("run")
    monkeypatch.setattr("unroll.export.folder.difference", lambda *_: 0.5)
    assert export.main(["run", "--format", "pt2", "--output", "out"]) == 2
    assert_one_line(capsys, "differs from PyTorch's by 0.5")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["run"]


class Peeking(Mixer):
    """Looks at a value, which no graph can."""

    def __init__(self, d_model):
        super().__init__()
        self.d_model = d_model

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, self.d_model)

    def forward(self, x, state=None, reset=None):
        state = self.initial_state(len(x)) if state is None else state
        return (x if float(x.sum()) > 0 else -x), state


def test_what_cannot_be_exported_is_one_line(capsys, monkeypatch):
    agent = make_agent(memory="window")
    agent.save("window")
    assert export.main(["window", "--format", "pt2"]) == 2
    assert_one_line(capsys, "--memory carried")
    assert export.main(["window", "--format", "pt2", "--memory", "carried"]) == 0
    capsys.readouterr()

    small_agent(backbone=f"{__name__}:Peeking").save("own")
    assert export.main(["own", "--format", "pt2"]) == 2
    assert_one_line(capsys, "cannot be exported to pt2")

    saved(*agent_of(), "ppo")
    assert export.main(["ppo", "--memory", "carried"]) == 2
    assert_one_line(capsys, "--memory is for decision agents")
    assert export.main(["nowhere"]) == 2
    assert_one_line(capsys, "no such run folder")
    assert exit_code(export.main, ["ppo", "--format", "tflite"]) == 2
    assert_one_line(capsys, "onnx")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert export.main(["ppo"]) == 2
    assert_one_line(capsys, "pip install 'unroll-rl[export]'")


@pytest.mark.parametrize(
    ("at", "function"),
    [
        ("unroll.agents.common.checkpoint.load_file", checkpoint.load_file),
        ("unroll.export.folder.hash_of", checkpoint.hash_of),
    ],
)
def test_a_checkpoint_that_its_run_removes_meanwhile_is_one_line(at, function, monkeypatch, capsys):
    def remove_first(*arguments):
        shutil.rmtree("run/checkpoints/step_00000000")
        return function(*arguments)

    small_agent().save("run/checkpoints/step_00000000")
    monkeypatch.setattr(at, remove_first)
    assert export.main(["run", "--format", "pt2"]) == 2
    assert_one_line(capsys, "checkpoints/step_00000000: was removed while it was read")


def test_a_policy_still_learns_after_its_export():
    agent, _ = agent_of("--env", "ToyBox-v0")
    step = ActorStep(agent.policy, agent.env.observation_space)
    trace(step)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(32)
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert not any(parameter.grad is not None for parameter in step.parameters())
