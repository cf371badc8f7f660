"""unroll share: what travels is safe and whole, on both sides of the way. The hub is one of this process."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from fake_hub import TOKEN, fake_hub
from toy import TINY, toy_episodes
from unroll.agents import AGENTS, schemas
from unroll.agents.common.checkpoint import read_checkpoint, write_checkpoint
from unroll.agents.common.run_folder import run_lock
from unroll.commands import evaluate, share, train
from unroll.configs import load_config
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import ShareError, UserError
from unroll.hub import client
from unroll.hub.card import describe_dataset, model_card
from unroll.hub.files import choose, limit, stage
from unroll.hub.verify import verify

NAME = "me/toy"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run among files that are nobody's business."""
    folder = tmp_path_factory.mktemp("trained")
    write_hdf5(toy_episodes(20), folder / "toy.hdf5")
    arguments = ["--dataset", str(folder / "toy.hdf5"), *TINY, "--steps", "8", "--evaluation.every", "4"]
    arguments += ["--condition", "return"]
    arguments += ["--checkpoint_every", "4", "--evaluation.episodes", "3", "--device", "cpu"]
    assert train.main([*arguments, "--run_dir", str(folder / "run")]) == 0
    assert evaluate.main([str(folder / "run/checkpoints/best")]) == 0
    for name in ("model.zip", "replay.pkl", "evaluation.sh", "checkpoints/secret.pt", "checkpoints/best/extra.py"):
        (folder / "run" / name).write_text("mine")
    (folder / "run" / "evaluation.gif").write_bytes(b"GIF89a")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "run"))


@pytest.fixture
def staged(run, tmp_path):
    stage(run, tmp_path / "staged", best=False, events=False)
    return tmp_path / "staged"


@pytest.fixture
def hub(monkeypatch):
    """A hub that unroll share talks to, with the right token."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra share is not installed")
    with fake_hub() as hub:
        hub.api = huggingface_hub.HfApi(hub.address, token=TOKEN)
        monkeypatch.setattr(client, "connect", lambda: hub.api)
        yield hub


def line(capsys):
    (only,) = capsys.readouterr().err.splitlines()
    return only.removeprefix("unroll share: ")


def test_only_files_that_are_safe_travel(staged):
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    step = "checkpoints/step_00000008"
    assert names == {
        *("config.yaml", "metrics.jsonl", "evaluation.json", "evaluation.gif"),
        *(f"{step}/manifest.json", f"{step}/state.json", f"{step}/tensors.safetensors"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("model.zip", "policy.pkl", ".lock", "config.yaml.bak", "x/config.yaml", "../config.yaml", "/config.yaml"),
        *("checkpoints/step_1/../../../state.json", "checkpoints/step_1/tensors.pt", "checkpoints/best/state.json"),
        *("checkpoints/step_1/state.json\n", "checkpoints/step_١/state.json", "events.out.tfevents.1/2", "train.py"),
    ],
)
def test_a_name_that_is_not_one_of_a_run_does_not_come_down(name):
    assert limit(name) is None
    assert choose([name, "config.yaml"], events=True) == ["config.yaml"]


def test_of_the_checkpoints_the_last_comes_down():
    names = [f"checkpoints/step_{step}/state.json" for step in ("00000900", "00001000", "00000008")]
    assert choose([*names, "events.out.tfevents.1.host.2.0"], events=False) == [names[1]]


def test_the_best_checkpoint_travels_with_its_own_score(run, tmp_path):
    stage(run, tmp_path / "best", best=True, events=True)
    shared = verify(tmp_path / "best", "run")
    assert shared.evaluation == json.loads((run / "evaluation_best.json").read_text())
    assert shared.evaluation["updates"] == read_checkpoint(run / "checkpoints/best")[1]["num_timesteps"]
    assert len([name for name in shared.files if name.startswith("events")]) == 1
    assert evaluate.main([str(tmp_path / "best")]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "checkpoints/step_00000008/state.json"])
def test_a_link_does_not_travel(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link, "):
        stage(run, tmp_path / "staged", best=False, events=False)


def test_a_run_that_is_being_trained_stays(run, tmp_path):
    with run_lock(run), pytest.raises(ShareError, match="a process is training"):
        stage(run, tmp_path / "staged", best=False, events=False)


def test_the_card_says_what_it_is_how_well_it_plays_and_how_to_get_it(staged):
    card = model_card(verify(staged, "run"), NAME)
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    (result,) = about["model-index"][0]["results"]
    evaluation = json.loads((staged / "evaluation.json").read_text())
    best = max(evaluation["results"], key=lambda result: result["target_return"])
    assert result["metrics"][0]["value"].startswith(f"{best['return_mean']:.2f} +/- ")
    assert about["library_name"] == "unroll"
    assert {"reinforcement-learning", "mingru", "ToyBox-v0"} <= set(about["tags"])
    low, high = best["return_interval"]
    assert f"| {best['target_return']:g} | {best['return_mean']:.4g} | {low:.4g} to {high:.4g} |" in text
    for said in (
        "3 episodes",
        "1000000 to 1000002",
        f"unroll share download {NAME}",
        "d_model 16",
        "toy.hdf5",
        "mujoco ",
    ):
        assert said in text
    assert str(staged.parent) not in text


def test_the_card_says_the_mean_return_of_several_datasets_once(staged):
    change(
        staged, lambda text: text.replace("dataset: ", "dataset: [other.hdf5, ", 1).replace("toy.hdf5", "toy.hdf5]", 1)
    )
    relabel_score(staged, dataset_return_mean=57.6)
    card = model_card(verify(staged, "run"), NAME)
    learned = (
        "It learned from the file other.hdf5, which is not in this repository and the file toy.hdf5, which is not in"
    )
    assert f"{learned} this repository. The mean return of its episodes is 57.6.\n" in card
    assert card.count("57.6") == 1


def test_the_card_says_the_arguments_of_the_environment_and_cut_episodes(staged):
    relabel_score(staged, env_kwargs={"length": 30}, max_steps=1000)
    relabel_result(staged, cut=2)
    _, front, text = model_card(verify(staged, "run"), NAME).split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"] == {
        "name": "ToyBox-v0 (length 30)",
        "type": "ToyBox-v0",
    }
    assert "3 episodes of ToyBox-v0 (length 30) each" in text
    assert " 2 of 9 episodes of ToyBox-v0 were cut after 1,000 steps. " in text

    words = ["--agent", "ppo", "--env", "TMaze-v0", "--env_kwargs", "{length: 30}"]
    learned = AGENTS["ppo"].learned_from(load_config(words, schemas()), describe_dataset)
    assert learned == "It learned in 8 environments TMaze-v0 (length 30)."


DAMAGES = {
    "a flipped bit": lambda run: flip(run / "checkpoints/step_00000008/tensors.safetensors"),
    "a missing file": lambda run: (run / "checkpoints/step_00000008/state.json").unlink(),
    "no checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
    "no config": lambda run: (run / "config.yaml").unlink(),
    "a page": lambda run: (run / "config.yaml").write_text("<html>"),
    "a tag": lambda run: (run / "config.yaml").write_text("seed: !!python/object/apply:os.system [x]"),
    "an alias": lambda run: change(run, lambda text: text + "a: &a [x]\nb: *a\n"),
    "a bomb of brackets": lambda run: (run / "config.yaml").write_text("[" * 60_000),
    "a bomb of lists": lambda run: (run / "config.yaml").write_text("- " * 30_000),
    "a large config": lambda run: (run / "config.yaml").write_text("#" * 100_000),
    "a path for a group": lambda run: change(
        run, lambda text: "backbone: /etc/passwd\n" + text.replace("backbone", "b")
    ),
    "a key of the command line": lambda run: change(run, lambda text: text + "resume: true\nrun_dir: /\n"),
    "an unknown key": lambda run: change(run, lambda text: text + "entry_point: os:system\n"),
    "another agent": lambda run: relabel(run, agent="RecurrentPPO"),
    "another step": lambda run: relabel(run, num_timesteps=9),
    "an old score": lambda run: relabel_score(run, updates=4),
    "a better score": lambda run: relabel_result(run, return_mean=500.0),
    "no number": lambda run: relabel_result(run, returns=[10**400, 0, 0]),
    "half a score": lambda run: relabel_score(run, results=[{}]),
    "no score": lambda run: (run / "evaluation.json").write_text("[" * 100_000),
    "words for numbers": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "a": "b"}\n'),
    "no picture": lambda run: (run / "evaluation.gif").write_bytes(b"MZ"),
    "a stranger": lambda run: (run / "model.pkl").write_bytes(b""),
}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change(run, function):
    (run / "config.yaml").write_text(function((run / "config.yaml").read_text()))


def relabel(run, **changes):
    folder = run / "checkpoints/step_00000008"
    tensors, state = read_checkpoint(folder)
    write_checkpoint(folder, tensors, state | changes)


def relabel_score(run, **changes):
    path = run / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relabel_result(run, **changes):
    results = json.loads((run / "evaluation.json").read_text())["results"]
    relabel_score(run, results=[results[0] | changes, *results[1:]])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_line_that_names_it(staged, damage, capsys):
    DAMAGES[damage](staged)
    try:
        with pytest.raises(ShareError) as caught:
            verify(staged, "you/theirs")
        said = str(caught.value)
    except SystemExit:  # the parser's
        said = capsys.readouterr().err.strip()
    assert "you/theirs" in said
    assert len(said.splitlines()) == 1
    assert str(staged) not in said


def test_a_class_of_its_author_is_named_and_never_imported(staged, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    change(staged, lambda text: text.replace("name: mingru", "name: evil:Backbone"))
    assert "unroll evaluate runs/me/toy --video --backbone evil:Backbone" in model_card(verify(staged, "x"), NAME)
    assert not Path("ran").exists()


def test_an_environment_of_its_author_is_named_in_the_commands(staged):
    change(staged, lambda text: text.replace("name: mingru", "name: evil:Backbone"))
    change(staged, lambda text: re.sub("(?m)^  env: .*$", "  env: my_env:Mine-v0", text))
    card = model_card(verify(staged, "x"), NAME)
    assert "unroll evaluate runs/me/toy --video --backbone evil:Backbone --env my_env:Mine-v0\n" in card
    assert "config.yaml --backbone.name evil:Backbone --evaluation.env my_env:Mine-v0 " in card


def test_a_run_goes_up_and_comes_down_and_plays_the_same(hub, run, capsys):
    assert share.main(["upload", "run", NAME, "--private"]) == 0
    assert set(hub.repositories) == {NAME}
    assert NAME not in hub.public
    files = hub.repositories[NAME]
    assert set(files) - {"README.md", ".gitattributes"} == set(choose(files, events=False))
    assert not [name for name in files if "pkl" in name or "zip" in name or "secret" in name]

    assert share.main(["download", NAME, "--revision", "main"]) == 0
    down = Path("runs", NAME)
    assert "unroll evaluate runs/me/toy" in capsys.readouterr().out
    assert sorted(path.name for path in down.iterdir()) == [
        *("checkpoints", "config.yaml", "evaluation.gif", "evaluation.json", "metrics.jsonl")
    ]
    before = json.loads((run / "evaluation.json").read_text())["results"]
    (down / "evaluation.json").unlink()
    assert evaluate.main([str(down)]) == 0
    assert json.loads((down / "evaluation.json").read_text())["results"] == before
    assert [path.name for path in down.parent.iterdir()] == ["toy"]
    assert share.main(["download", NAME]) == 2  # is there already


def test_a_later_upload_replaces_the_run_and_nothing_else(hub, run):
    assert share.main(["upload", "run", NAME]) == 0
    assert NAME in hub.public
    hub.repositories[NAME]["LICENSE"] = b"mine"
    assert train.main(["--resume", "true", "--run_dir", "run", "--steps", "10"]) == 0  # the film is of an older one
    assert share.main(["upload", "run", NAME]) == 0
    files = hub.repositories[NAME]
    assert "LICENSE" in files
    assert "evaluation.gif" not in files
    assert {name.split("/")[1] for name in files if name.startswith("checkpoints/")} == {"step_00000010"}


def test_what_is_wrong_with_an_upload_is_one_line_and_changes_nothing(hub, run, capsys, monkeypatch):
    hub.repositories = {"me/other": {"pytorch_model.bin": b"x"}, "me/open": {"config.yaml": b"x"}}
    hub.public.add("me/open")
    assert share.main(["upload", "run", "me/other"]) == 2
    assert "holds something that is not a run" in line(capsys)
    assert share.main(["upload", "run", "me/open", "--private"]) == 2
    assert "is public" in line(capsys)
    assert share.main(["upload", "nowhere", NAME]) == 2
    assert "nowhere" in line(capsys)
    hub.api.token = "hf_wrong"
    assert share.main(["upload", "run", NAME]) == 2
    assert "does not take your token" in line(capsys)
    hub.api.token = None
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert share.main(["upload", "run", NAME]) == 2
    assert "wants a token" in line(capsys)
    hub.api.token = TOKEN
    flip(run / "checkpoints/step_00000008/tensors.safetensors")
    assert share.main(["upload", "run", NAME]) == 2
    assert "damaged" in line(capsys)
    assert set(hub.repositories) == {"me/other", "me/open"}


def test_what_is_wrong_with_a_download_is_one_line_and_leaves_nothing(hub, run, capsys):
    assert share.main(["upload", "run", NAME]) == 0
    files = hub.repositories[NAME]
    capsys.readouterr()

    def refused(*arguments):
        assert share.main(["download", *arguments, "--run_dir", "new/run"]) == 2
        assert sorted(path.name for path in Path().iterdir()) == ["run"]
        return line(capsys)

    assert "no such repository" in refused("me/nothing")
    assert "has no revision 'v9'" in refused(NAME, "--revision", "v9")
    hub.sizes = {"config.yaml": 10**9}
    assert "1,000,000,000 bytes" in refused(NAME)
    hub.sizes = {"checkpoints/step_00000008/tensors.safetensors": 10**15}
    assert "are the most" in refused(NAME)
    hub.sizes = {}
    tensors = "checkpoints/step_00000008/tensors.safetensors"
    whole = files[tensors]
    files[tensors] = whole[:-1] + b"?"
    assert f"{NAME}/{tensors}: damaged" in refused(NAME)
    del files[tensors]
    assert f"{NAME}/{tensors}: missing" in refused(NAME)
    hub.repositories["me/foreign"] = {"model.safetensors": b"x", "config.json": b"{}"}
    assert "holds no run" in refused("me/foreign")
    hub.api.endpoint = "http://127.0.0.1:9"  # nobody listens
    assert "the hub cannot be reached" in refused(NAME)


@pytest.mark.parametrize("name", ["toy", "me/../toy", "me/toy/more", "/toy", "me/", "https://huggingface.co/me/toy"])
def test_a_name_that_is_none_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as caught:
        share.main(["download", name])
    assert caught.value.code == 2
    assert "USER/NAME" in capsys.readouterr().err


def test_without_the_library_a_line_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert share.main(["upload", "run", NAME]) == 2
    assert "pip install 'unroll-rl[share]'" in line(capsys)
