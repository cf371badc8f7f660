"""The pictures that commands leave: a dataset on one page, an evaluation, a comparison."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fake_runs import DECISION, fake_grid, fake_run
from unroll.commands import compare, evaluate, inspect
from unroll.pictures.dataset import draw_dataset
from unroll.pictures.evaluation import draw_evaluation

GOLDEN = Path(__file__).parents[1] / "golden"


def pixels(path):
    """The picture as numbers; it must be 800 pixels wide and have something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 800
        values = np.asarray(image.convert("RGB"))
    assert values.std() > 10
    return values


def test_inspect_draws_the_dataset_on_a_page_and_names_it_last(fields, write, tmp_path, capsys):
    page = tmp_path / "page.png"
    assert inspect.main([str(write(fields)), "--page", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {page}"
    pixels(page)


@pytest.mark.parametrize("page", ["page.html", "page", "nowhere/page.png"])
def test_a_page_that_cannot_be_written_is_one_line_before_anything_is_read(page, capsys):
    assert inspect.main(["no-such-file.hdf5", "--page", page]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--page {page}: must end in .png")


def test_a_dataset_that_is_unfit_gets_its_page_and_the_exit_code_2(fields, write, tmp_path, capsys):
    fields["observations"][3, 1] = np.nan
    page = tmp_path / "page.png"
    assert inspect.main([str(write(fields)), "--page", str(page)]) == 2
    assert "can be trained on: no" in capsys.readouterr().out
    pixels(page)


CHANGES = {
    "discrete": lambda episodes: episodes,
    "nothing is finite": lambda episodes: dataclasses.replace(
        episodes,
        observations=np.full_like(episodes.observations, np.nan),
        rewards=np.full_like(episodes.rewards, np.inf),
    ),
    "one observed number": lambda episodes: dataclasses.replace(
        episodes, observations=episodes.observations[:, :1], final_observations=None
    ),
    "nothing changes": lambda episodes: dataclasses.replace(
        episodes, observations=np.ones_like(episodes.observations), rewards=np.ones_like(episodes.rewards)
    ),
    "arrays that do not fit": lambda episodes: dataclasses.replace(episodes, rewards=episodes.rewards[:-1]),
    "huge rewards": lambda episodes: dataclasses.replace(episodes, rewards=np.float32(3e37) * episodes.rewards),
    "a wide observation": lambda episodes: dataclasses.replace(
        episodes, observations=np.ones((len(episodes.observations), 900), np.float32), final_observations=None
    ),
    "a long name": lambda episodes: dataclasses.replace(episodes, env_id="Env" * 50, remarks=("word " * 99,)),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("discrete", [False, True])
def test_any_dataset_gets_a_page_without_a_warning(what, discrete, make_episodes, tmp_path):
    episodes = CHANGES[what](make_episodes([4, 1, 9], discrete=discrete))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_dataset(episodes, "name " * 40, tmp_path / "page.png")
    pixels(tmp_path / "page.png")


@pytest.mark.parametrize("name", ["decision_run", "ppo_run"])
def test_an_evaluation_ends_with_its_picture(name, tmp_path, capsys):
    output = tmp_path / "score.json"
    assert evaluate.main([str(GOLDEN / name), "--output", str(output), "--episodes", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {tmp_path / 'score.png'}"
    pixels(tmp_path / "score.png")


@pytest.mark.parametrize("returns", [[1.0], [500.0] * 3, [-1e30, 1e30], [0.1, 0.2, 0.3]])
@pytest.mark.parametrize("targets", [(None,), (3.0,), (1.0, -2.0, 3e9)])
def test_any_evaluation_gets_a_picture_without_a_warning(returns, targets, tmp_path):
    run = fake_run(tmp_path / "run", "mingru", 0, 1.0, *([DECISION] if targets[0] else []), targets=targets)
    evaluation = json.loads((run / "evaluation.json").read_text())
    if "ablation" in evaluation:
        evaluation["ablation"]["memory"] = "wiped every step"
    for result in evaluation["results"]:
        result["returns"] = returns
        result["return_mean"] = np.mean(returns)
        result["return_interval"] = [min(returns), max(returns)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_evaluation(evaluation, tmp_path / "score.png")
    pixels(tmp_path / "score.png")


def test_a_comparison_ends_with_one_picture_of_all_experiments(tmp_path, capsys):
    scores = {"mingru": [9.0, 8, 9], "gru": [5.0, 6, 5]}
    fake_grid(tmp_path, scores)
    fake_grid(tmp_path, scores, "asked", arguments=DECISION, targets=(4.0, 8.0))
    assert compare.main(["--from", str(tmp_path)]) == 0
    picture = tmp_path / "comparison.png"
    assert capsys.readouterr().out.splitlines()[-1] == f"picture  {picture}"
    two = pixels(picture)

    # Another report replaces it.
    assert compare.main(["--from", str(tmp_path / "maze"), "--output", str(tmp_path)]) == 0
    assert len(pixels(picture)) < len(two)


@pytest.mark.parametrize("normalized", [True, False])
def test_many_experiments_have_their_scores_three_in_a_row(normalized, tmp_path):
    heights = {}
    for n in range(1, 6):
        env = f"TMaze{(10, 20, 50, 100)[n - 1]}-v0" if n < 5 else "RepeatFirstEasy-v0"
        arguments = ["--agent", "ppo", "--env", env, "--steps", "1000"]
        fake_grid(tmp_path, {"mingru": [9.0, 8, 9]}, env, arguments=arguments, normalized=normalized)
        if n in (1, 4, 5):
            assert compare.main(["--from", str(tmp_path)]) == 0
            heights[n], width, _ = pixels(tmp_path / "comparison.png").shape
            assert width == 800
    assert heights[4] == heights[5] < heights[1]
