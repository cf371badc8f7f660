"""Which scores are those of a run that goes on: it may be evaluated otherwise than before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from unroll.agents import schemas
from unroll.configs import RunConfig, load_saved

if TYPE_CHECKING:  # PyTorch is imported once the arguments are known to be right
    from unroll.agents.common.logs import RunLogger

SCORE = "eval/return_mean"  # of the highest target: what the best checkpoint is best in
SCORES_ALIKE = ("every", "n_envs", "reuse_envs", "video")  # fields of an evaluation that no score depends on
MADE_OF_IT = ("evaluation.png", "evaluation.gif")  # pictures that stand beside evaluation.json


def drop_old_score(config: RunConfig, folder: Path, learns_on: bool) -> None:
    """Remove what would pass for the score of a run that goes on, or for an episode of it.

    That is the score of another evaluation, and, where more is learned, the film of an older checkpoint. The score is
    made anew at the end. Where nothing is to be played any more, it stays.
    """
    if config.evaluation.episodes and is_evaluated_otherwise(config, folder):
        (folder / "evaluation.json").unlink(missing_ok=True)
        drop_pictures(folder)
    if learns_on:  # evaluation.json says of which step it is, and a film does not
        (folder / "evaluation.gif").unlink(missing_ok=True)


def drop_pictures(folder: Path) -> None:
    """Remove the pictures of an evaluation that is replaced."""
    for name in MADE_OF_IT:
        (folder / name).unlink(missing_ok=True)


def is_evaluated_otherwise(config: RunConfig, folder: Path, but: tuple[str, ...] = ()) -> bool:
    """Whether a run that goes on is evaluated otherwise than its folder says, in other fields than ``but``."""
    path = folder / "config.yaml"
    before = load_saved(path, schemas(), f"unroll train: {path}")
    old, new = (
        {name: value for name, value in dataclasses.asdict(each.evaluation).items() if name not in SCORES_ALIKE + but}
        for each in (before, config)
    )
    return old != new


def scores_begin_anew(config: RunConfig, folder: Path) -> bool:
    """Whether a run that goes on has scores, and is evaluated otherwise from here on."""
    from unroll.agents.common.logs import read_metrics

    if not config.evaluation.episodes or best_so_far(read_metrics(folder))[0] is None:
        return False
    return is_evaluated_otherwise(config, folder, but=("ablation",))  # the score has nothing to do with that one


def begin_anew(folder: Path, logger: RunLogger, step: int) -> str:
    """Log that a run that goes on at ``step`` is evaluated otherwise from here on, and return the line that says it."""
    from unroll.agents.common.logs import ANEW

    logger.record(ANEW, 1.0, exclude="tensorboard")
    logger.dump(step)
    kept = folder / "checkpoints" / name_of_old_best(step)
    return (
        "note: the run is evaluated otherwise than before, so its scores from here on are not compared with those of "
        f"before; checkpoints/best stays as it is until there is a new best, and as {kept} from then on"
    )


def best_so_far(logged: list[dict[str, float]]) -> tuple[float | None, str | None]:
    """Return the best score that a run has logged by the evaluation that it has now, None if it has none.

    The second is the name that its best checkpoint gets, which is one of another evaluation; None where it is not.
    """
    from unroll.agents.common.logs import ANEW

    scores: list[float] = []
    old = None
    for line in logged:
        if ANEW in line:
            scores = []
            old = name_of_old_best(int(line["step"]))
        if SCORE in line:
            scores.append(line[SCORE])
    return (max(scores), None) if scores else (None, old)


def name_of_old_best(step: int) -> str:
    """Name the checkpoint that was the best one up to ``step``, from which on the run is evaluated otherwise."""
    return f"best_until_{step:08d}"
